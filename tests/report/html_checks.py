"""Properties of every report."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"br", "img", "link", "meta"}
ADDRESSES = ("src", "href", "srcset", "data", "action", "poster")


class Checker(HTMLParser):
    """Parse a page as strictly as XML, and collect its addresses, ids, tags and texts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.images_without_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        attributes = dict(attrs)
        self.faults += [f"{tag} has {name}" for name in attributes if name.startswith("on")]
        self.addresses += [attributes[name] or "" for name in ADDRESSES if name in attributes]
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.images_without_alt += tag == "img" and not attributes.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes an element that is not open, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def checked(html: str) -> Checker:
    """Parse a page, and check that it is well-formed, loads nothing and runs no script."""
    page = Checker()
    page.feed(html)
    page.close()
    assert page.faults == []
    assert page.open == []
    assert [i for i, n in Counter(page.ids).items() if n > 1] == []
    elsewhere = [a for a in page.addresses if not a.startswith(("data:", "#"))]
    assert elsewhere == []
    assert [a for a in page.addresses if a.startswith("#") and a[1:] not in page.ids] == []
    assert page.tags["script"] == 0
    assert page.images_without_alt == 0
    assert re.findall(r"url\(|@import", html) == []
    return page
