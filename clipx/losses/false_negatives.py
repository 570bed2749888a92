"""Which candidates a loss masks, or takes as positives, because they are no true negatives."""

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

Concept = Literal["caption", "image", "label"]
"""Candidates with the row's caption, its image, or its class."""
