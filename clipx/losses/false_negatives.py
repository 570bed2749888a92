"""Which candidates a loss masks because they are no true negatives."""

from __future__ import annotations

from typing import Literal

FalseNegatives = Literal["none", "caption", "image", "both"]
"""Candidates with the row's caption, its image, or either."""
ID_KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "caption": ("caption",),
    "image": ("image",),
    "both": ("caption", "image"),
}
