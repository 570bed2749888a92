"""HTML and SVG elements. Text is escaped unless it is `Markup`, so that no caption can become a
tag."""

from __future__ import annotations

import base64
import io
from html import escape

import torch
from PIL import Image
from torch import Tensor

_VOID = {"br", "img", "meta"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None
"""None is left out."""


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """`element("p", "a < b", class_="note")` -> `<p class="note">a &lt; b</p>`.

    attributes: by Python's names, `text_anchor` for `text-anchor`, `class_` for `class`; those that
    are None are left out
    """
    told = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{told}>")
    return Markup(f"<{tag}{told}>{join(*children)}</{tag}>")


def join(*children: Child) -> Markup:
    return Markup(
        "".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None)
    )


def _number(value: str | float) -> str:
    """Coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def picture_uri(image: Tensor, *, size: int = 96) -> str:
    """A picture as a data URI of a few kilobytes.

    image: (3, H, W) uint8; its longer side becomes at most `size` pixels
    """
    picture = Image.fromarray(image.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
