"""What every report must be, whatever is in it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"br", "img", "link", "meta"}
ADDRESSES = ("src", "href", "srcset", "data", "action", "poster")


class Checker(HTMLParser):
    """Reads a page as strictly as XML, and remembers what it has."""

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
        given = dict(attrs)
        self.faults += [f"{tag} has {name}" for name in given if name.startswith("on")]
        self.addresses += [given[name] or "" for name in ADDRESSES if name in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        self.images_without_alt += tag == "img" and not given.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes what is not open, at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def checked(html: str) -> Checker:
    """The page, after it was found to be well-formed, to load nothing and to run nothing."""
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
