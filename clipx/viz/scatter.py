"""A map of images and texts as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from clipx.viz.maps import Map
from clipx.viz.markup import Markup, element
from clipx.viz.scales import Scale

WIDTH, HEIGHT, EDGE, PICTURE = 640.0, 470.0, 22.0, 26.0


def pair_map(found: Map, names: Sequence[str], pictures: dict[int, str]) -> Markup:
    """Images as discs, their texts as rings, a thin line from one to the other.

    found: of 2 N rows, images first; names: of the N pairs
    pictures: pair -> id of an SVG symbol, shown in place of its disc
    """
    count = len(names)
    xs, ys = found.place[:, 0], found.place[:, 1]
    x = Scale(*_ends(float(xs.min()), float(xs.max())), EDGE, WIDTH - EDGE)
    y = Scale(*_ends(float(ys.min()), float(ys.max())), HEIGHT - EDGE - 16, EDGE)
    at = [(x(float(a)), y(float(b))) for a, b in found.place]
    lines, texts, images, shown = [], [], [], []
    for n, name in enumerate(names):
        (ix, iy), (tx, ty) = at[n], at[n + count]
        lines.append(element("line", x1=ix, y1=iy, x2=tx, y2=ty))
        title = element("title", f"text: {name}")
        texts.append(element("circle", title, cx=tx, cy=ty, r=3.2))
        title = element("title", f"image: {name}")
        if n in pictures:
            corner = {"x": ix - PICTURE / 2, "y": iy - PICTURE / 2}
            size = {"width": PICTURE, "height": PICTURE}
            frame = element("rect", **corner, **size, rx=3)
            use = element("use", href=f"#{pictures[n]}", **corner, **size)
            shown.append(element("g", title, frame, use))
        else:
            images.append(element("circle", title, cx=ix, cy=iy, r=3.2))
    across, up = found.axes
    middle = f"rotate(-90 {EDGE / 2} {HEIGHT / 2})"
    drawing = element(
        "svg",
        element("g", *lines, class_="pair"),
        element("g", *texts, class_="ring"),
        element("g", *images, class_="disc"),
        element("g", *shown, class_="framed"),
        element("text", across, x=WIDTH / 2, y=HEIGHT - 6, text_anchor="middle"),
        element("text", up, x=EDGE / 2, y=HEIGHT / 2, text_anchor="middle", transform=middle),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=f"{found.name} map of {count} images and their texts",
    )
    legend = element(
        "span",
        element("span", "image", class_="key key-1"),
        element("span", "its text", class_="key key-ring"),
        class_="legend",
    )
    caption = element("figcaption", element("strong", found.name), legend)
    return element("figure", caption, drawing, class_="chart map")


def apart(found: Map, count: int, most: int, *, gap: float = PICTURE * 1.3) -> list[int]:
    """Up to `most` of the first `count` rows, of which no two would overlap as pictures."""
    xs, ys = found.place[:, 0], found.place[:, 1]
    x = Scale(*_ends(float(xs.min()), float(xs.max())), EDGE, WIDTH - EDGE)
    y = Scale(*_ends(float(ys.min()), float(ys.max())), HEIGHT - EDGE, EDGE)
    chosen: list[tuple[int, float, float]] = []
    for n in range(count):
        px, py = x(float(xs[n])), y(float(ys[n]))
        if all(max(abs(px - a), abs(py - b)) >= gap for _, a, b in chosen):
            chosen.append((n, px, py))
        if len(chosen) == most:
            break
    return [n for n, _, _ in chosen]


def _ends(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.03 or 1.0
    return low - room, high + room
