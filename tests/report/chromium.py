"""A headless Chromium, spoken to over its debugging pipe: no package is needed.

As a script it takes pictures: python tests/report/chromium.py REPORT.html OUT_PREFIX
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
EVENTS = ("Network.requestWillBeSent", "Runtime.exceptionThrown", "Log.entryAdded")
EVENTS += ("Runtime.consoleAPICalled",)


class Chromium:
    """One page. `events` has what it asked of the network and said on its console."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self.profile = tempfile.TemporaryDirectory()
        told, self._write = os.pipe()
        self._read, says = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self.profile.name}", "--hide-scrollbars", "about:blank"]
        command = ["bash", "-c", f'exec "$@" 3<&{told} 4>&{says}', "bash", PROGRAM, *flags]
        self.process = subprocess.Popen(
            command, pass_fds=(told, says), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(told)
        os.close(says)
        self._rest, self._last, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if message.get("method") in EVENTS:
            self.events.append(message)
        self.loaded = self.loaded or message.get("method") == "Page.loadEventFired"
        return message

    loaded = False

    def open(self, page: Path, *, width: int, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.size(width, 900)
        self.loaded = False
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self._next()

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def value(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def picture(self, out: Path, *, top: int = 0, height: int | None = None) -> None:
        whole, width = self.value("document.documentElement.scrollHeight"), self.value("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height or whole - top, "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        out.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self._read)
        os.close(self._write)
        self.profile.cleanup()


def main(page: Path, prefix: str) -> None:
    browser = Chromium()
    for width in (1280, 420):
        for dark in (False, True):
            browser.open(page, width=width, dark=dark)
            out = Path(f"{prefix}-{width}-{'dark' if dark else 'light'}.png")
            browser.picture(out)
            print(out, browser.value("document.documentElement.scrollHeight"))
    urls = [e["params"]["request"]["url"] for e in browser.events if "request" in e["params"]]
    print("requests:", {url for url in urls if not url.startswith("data:")})
    print("console:", [e["params"] for e in browser.events if "request" not in e["params"]])
    browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
