"""Drive a headless Chromium over its debugging pipe, without a package.

As a script it takes screenshots: python tests/report/chromium.py REPORT.html OUT_PREFIX
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
    """One page. events: its network requests, exceptions and console messages"""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self.profile = tempfile.TemporaryDirectory()
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += ["--enable-unsafe-swiftshader"]  # WebGL without a graphics card
        flags += [f"--user-data-dir={self.profile.name}", "--hide-scrollbars", "about:blank"]
        command = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", PROGRAM, *flags]
        self.process = subprocess.Popen(
            command,
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._rest = b""
        self._last = 0
        self._session = ""
        self.loaded = False
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

    def open(self, page: Path | str, *, width: int, dark: bool) -> None:
        """page: a file, or an address"""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.size(width, 900)
        self.loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not self.loaded:
            self._next()

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def value(self, expression: str) -> Any:
        """Of a promise, what it is fulfilled with."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return result["result"].get("value")

    def picture(self, out: Path, *, top: int = 0, height: int | None = None) -> None:
        page_height = self.value("document.documentElement.scrollHeight")
        width = self.value("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height or page_height - top, "scale": 1}
        screenshot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        out.write_bytes(base64.b64decode(screenshot["data"]))

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
