"""Takes the pictures of docs/search.md: docs/img/search.webp and docs/img/map.webp.

    python docs/figures/screenshots.py embeddings/demo [--query "smiling cat"] [--out docs/img]

needs Chromium or Chrome, embeddings with a map (`clipx index DIR --map`), and the extra `serve`
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/report"))
import chromium  # noqa: E402

WIDTH = 1280
HEIGHT = 800
QUALITY = 82  # of WebP, at which letters are clean and a map of 55 thousand points has 150 kB
WAIT_SECONDS = 60
SEARCHED = "document.querySelectorAll('.picture.loaded').length >= 14"
# So that the page does not know that the browser has no graphics card, and uses WebGL.
WEBGL = "WebGLRenderingContext.prototype.getExtension = () => null;"
DRAWN = "!document.getElementById('map-legend').hidden"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server over embeddings, as long as it is needed."""
    command = [sys.executable, "-m", "clipx", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline()
            if not address:
                sys.exit("the server has ended; its message is above")
        yield address.strip()
    finally:
        process.terminate()
        process.wait()


def wait(browser: chromium.Chromium, address: str, condition: str, dark: bool) -> None:
    """Open a page until the condition holds."""
    browser.open("about:blank", width=WIDTH, dark=dark)
    browser.open(address, width=WIDTH, dark=dark)
    browser.size(WIDTH, HEIGHT)
    end = time.monotonic() + WAIT_SECONDS
    while not browser.value(condition):
        if time.monotonic() > end:
            sys.exit(f"{address} is not ready after {WAIT_SECONDS} s; does it have a map?")
        time.sleep(0.1)


def take(browser: chromium.Chromium, address: str, condition: str, out: Path, dark: bool) -> None:
    """A picture of the page, once the condition holds."""
    wait(browser, address, condition, dark)
    time.sleep(1)  # pictures fade in
    png = out.with_suffix(".png")
    browser.picture(png, height=HEIGHT)
    image = Image.open(io.BytesIO(png.read_bytes())).convert("RGB")
    png.unlink()
    image.save(out, "WEBP", quality=QUALITY, method=6)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of `clipx embed`, with a map")
    parser.add_argument("--query", default="smiling cat")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/img")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    if chromium.PROGRAM is None:
        sys.exit("neither chromium nor google-chrome is installed: apt-get install chromium")
    query = arguments.query.replace(" ", "+")
    with serving(arguments.folder.resolve()) as address:
        browser = chromium.Chromium()
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=WEBGL)
        try:
            search = f"{address}#q={query}"
            # The first query of a server takes longer than those that people wait for.
            wait(browser, search, SEARCHED, arguments.dark)
            take(browser, search, SEARCHED, arguments.out / "search.webp", arguments.dark)
            drawn = f"{address}#q={query}&view=map"
            take(browser, drawn, DRAWN, arguments.out / "map.webp", arguments.dark)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
