"""The page in a browser, against a server that the command line has started."""

from __future__ import annotations

import base64
import json

import pytest
import served
from browsing import chromium, press, type_text, wait
from samples import png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="chromium is not installed"),
]
RESULTS = "document.getElementById('status').textContent.includes('ms')"
KEYS = "[...document.querySelectorAll('.card .open')].map(open => open.title)"


def hand_over(browser: chromium.Chromium, kind: str, data: bytes) -> None:
    """Drop or paste a picture."""
    content = base64.b64encode(data).decode()
    field = {"drop": "dataTransfer", "paste": "clipboardData"}[kind]
    event = {"drop": "DragEvent", "paste": "ClipboardEvent"}[kind]
    browser.value(
        f"""(() => {{
            const bytes = Uint8Array.from(atob({json.dumps(content)}), (c) => c.charCodeAt(0));
            const {field} = new DataTransfer();
            {field}.items.add(new File([bytes], "mine.png", {{ type: "image/png" }}));
            const init = {{ {field}, bubbles: true, cancelable: true }};
            document.body.dispatchEvent(new {event}("{kind}", init));
        }})()"""
    )


@pytest.mark.parametrize("width", [1280, 420])
def test_a_person_searches_by_text_and_picture_and_classifies(
    browser: chromium.Chromium, server: str, width: int
) -> None:
    browser.events.clear()
    browser.open("about:blank", width=width, dark=False)
    browser.open(server, width=width, dark=width == 420)
    wait(browser, "document.querySelectorAll('.card').length === 36")  # before any query
    assert browser.value("document.getElementById('notice').hidden")

    # A text, by the keyboard.
    browser.value("document.activeElement.blur()")
    press(browser, "/")
    type_text(browser, "picture 3")
    press(browser, "Enter")
    wait(browser, RESULTS)
    wait(browser, "document.querySelectorAll('.picture.loaded').length > 3")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")

    # The rest, as the person scrolls.
    assert browser.value(KEYS)[39:]
    scrolled = "scrollTo(0, document.body.scrollHeight)"
    wait(browser, f"({scrolled}, {KEYS}.length === {served.NUM_SAMPLES})")
    first = browser.value(KEYS)
    assert len(set(first)) == served.NUM_SAMPLES

    # Its opposite, as a chip whose sign is turned.
    browser.value("document.getElementById('add-near').click()")
    wait(browser, "document.querySelectorAll('.chip').length === 1")
    browser.value("document.querySelector('.chip .sign').click()")
    wait(browser, f"{KEYS}[0] !== {json.dumps(first[0])}")
    assert browser.value("document.querySelector('.chip').classList.contains('far')")
    assert first[-1] in browser.value(KEYS)[:10], "what was farthest is near"

    # A picture that is dropped, and one that is pasted.
    browser.value("document.querySelector('.chip .remove').click()")
    hand_over(browser, "drop", png(8))
    wait(browser, f"{KEYS}[0] === 'picture 8'")
    browser.value("document.querySelector('.chip .remove').click()")
    hand_over(browser, "paste", png(6))
    wait(browser, f"{KEYS}[0] === 'picture 6'")

    # One picture, and more like it.
    browser.value("document.querySelectorAll('.open')[2].focus()")
    title = browser.value("document.activeElement.title")
    press(browser, "Enter")
    wait(browser, "document.getElementById('detail').open")
    assert browser.value("document.getElementById('detail-caption').textContent") == title
    press(browser, "m")
    wait(browser, f"!document.getElementById('detail').open && {KEYS}[0] === {json.dumps(title)}")

    # A filter, and one with a wrong column.
    where = "document.getElementById('where')"
    browser.value("document.getElementById('filter-toggle').click()")
    type_text(browser, "price < 5")
    press(browser, "Enter")
    wait(browser, "document.querySelectorAll('.card').length === 5")
    browser.value(f"{where}.value = 'prize < 5'; {where}.focus()")
    press(browser, "Enter")
    wait(browser, "document.getElementById('error').textContent.includes('no column prize')")

    # Classes.
    browser.value("document.querySelector('[data-view=zero-shot]').click()")
    browser.value("document.getElementById('names').value = 'a cat\\na dog\\na car'")
    hand_over(browser, "drop", png(9))
    wait(browser, "document.querySelectorAll('#bars .fill').length === 3")

    requests = [e["params"]["request"]["url"] for e in browser.events if "request" in e["params"]]
    elsewhere = [url for url in requests if not url.startswith((server, "blob:", "about:"))]
    assert elsewhere == []
    messages = [event["params"] for event in browser.events if "request" not in event["params"]]
    refused = [m for m in messages if "400" not in m.get("entry", {}).get("text", "")]
    assert refused == [], "but the refusal of a filter"


def test_the_address_of_the_page_has_the_query(browser: chromium.Chromium, server: str) -> None:
    browser.open("about:blank", width=1280, dark=False)
    browser.open(f"{server}#q=a+cat&where=price+%3C+7", width=1280, dark=False)
    wait(browser, "document.querySelectorAll('.card').length === 7")
    assert browser.value("document.getElementById('text').value") == "a cat"
    assert browser.value("document.getElementById('where').value") == "price < 7"
