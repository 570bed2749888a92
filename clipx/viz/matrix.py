"""A matrix as shaded cells, in an HTML table that can be read aloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from clipx.viz.markup import Markup, element, join

FULL = 55
"""Percent of the accent color in the fullest cell: text on it must be legible, light and dark."""


def matrix_table(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    shown: Callable[[float], str],
    title: str,
    marked: Sequence[tuple[int, int]] = (),
    span: tuple[float, float] | None = None,
) -> Markup:
    """values: (R, C); rows, columns: headers, which may be `Markup`; shown: the text of a cell

    marked: (row, column) of the cells with a border, such as the right answers
    span: the values that are shown without and with full color; None: the smallest and largest
    """
    low, high = span or (float(values.min()), float(values.max()))
    head = [element("td"), *(element("th", name, scope="col") for name in columns)]
    body = []
    for r, name in enumerate(rows):
        cells = [element("th", name, scope="row")]
        for c in range(len(columns)):
            value = float(values[r, c])
            share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
            kind = " marked" if (r, c) in marked else ""
            style = f"--share:{FULL * share:.0f}%"
            cells.append(element("td", shown(value), class_=f"cell{kind}", style=style))
        body.append(element("tr", *cells))
    table = element(
        "table",
        element("caption", title),
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="matrix",
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


def header_with_picture(uri: str, alt: str) -> Markup:
    return join(element("img", src=uri, alt=alt, title=alt, class_="small"))
