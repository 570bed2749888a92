"""The page around the sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipx.report.style import CSS
from clipx.viz.markup import Markup, element, join


@dataclass(frozen=True)
class Section:
    """name: of its anchor, lower case; children: what stands below its title"""

    name: str
    title: str
    children: Sequence[Markup]

    def markup(self) -> Markup:
        heading = element("h2", self.title, id=f"{self.name}-title")
        return element(
            "section", heading, *self.children, id=self.name, aria_labelledby=f"{self.name}-title"
        )


def page(title: str, lead: str, tiles: Sequence[Markup], sections: Sequence[Section]) -> str:
    links = [element("a", s.title, href=f"#{s.name}") for s in sections]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        _ICON,
        element("style", Markup(CSS)),
    )
    header = element(
        "header",
        element("h1", title),
        element("p", lead, class_="lead"),
        element("ul", *tiles, class_="tiles") if tiles else None,
    )
    body = element(
        "body",
        element("nav", *links, aria_label="Sections"),
        element("main", header, *(s.markup() for s in sections)),
    )
    return "<!doctype html>\n" + join(element("html", head, body, lang="en")) + "\n"


_ICON = Markup('<link rel="icon" href="data:,">')
"""Without it, browsers ask a server for favicon.ico."""


def missing(why: str) -> Markup:
    """The one line in place of a part that cannot be shown."""
    return element("p", why, class_="missing")


def text(*children: str) -> Markup:
    return element("p", *children)


def sub(title: str) -> Markup:
    return element("h3", title)


def tile(value: str, name: str, note: str = "") -> Markup:
    return element(
        "li",
        element("span", value, class_="value"),
        element("span", name, class_="name"),
        element("span", note, class_="note") if note else None,
    )


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str,
    numbers: Sequence[int] = (),
) -> Markup:
    """numbers: the columns that are set flush right; the first cell of a row is its header"""
    head = [
        element("th", name, scope="col", class_="number" if c in numbers else None)
        for c, name in enumerate(columns)
    ]
    body = []
    for row in rows:
        first = element("th", row[0], scope="row")
        rest = [
            element("td", cell, class_="number" if c in numbers else None)
            for c, cell in enumerate(row[1:], 1)
        ]
        body.append(element("tr", first, *rest))
    found = element(
        "table",
        element("caption", title),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", found, class_="scroll", tabindex=0, role="region", aria_label=title)


def facts(pairs: Sequence[tuple[str, str]]) -> Markup:
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", value)) for name, value in pairs),
        class_="facts",
    )


def grid(*children: Markup, kind: str = "charts") -> Markup:
    return element("div", *children, class_=f"grid {kind}")


def details(summary: str, *children: Markup) -> Markup:
    return element("details", element("summary", summary), *children)
