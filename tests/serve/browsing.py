"""What a person does with a page in a browser."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
import chromium as chromium


def wait(browser: chromium.Chromium, expression: str) -> None:
    end = time.monotonic() + 20
    while not browser.value(expression):
        assert time.monotonic() < end, f"not within 20 s: {expression}"
        time.sleep(0.05)


def press(browser: chromium.Chromium, key: str) -> None:
    text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
    codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowRight": 39}
    common = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
    browser.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **common)


def type_text(browser: chromium.Chromium, text: str) -> None:
    browser.call("Input.insertText", text=text)
