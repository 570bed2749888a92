"""Images with what the model says of them, as one picture."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CELL, _IMAGE, _LINE = (210, 190), 96, 15


@dataclass(frozen=True)
class Guess:
    """image: (3, H, W) uint8; truth: its class; best: (class, probability), best first; group: the
    test set's name"""

    image: Tensor
    truth: str
    best: list[tuple[str, float]]
    group: str


def contact_sheet(guesses: list[Guess], *, columns: int) -> Image.Image:
    """A grid: the image, its true class in black, the guesses below it, green where right."""
    rows = -(-len(guesses) // columns)
    sheet = Image.new("RGB", (columns * _CELL[0], rows * _CELL[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    for i, guess in enumerate(guesses):
        x, y = (i % columns) * _CELL[0] + 8, (i // columns) * _CELL[1] + 6
        picture = Image.fromarray(guess.image.permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((_IMAGE, _IMAGE), Image.Resampling.LANCZOS), (x, y))
        draw.rectangle((x - 1, y - 1, x + _IMAGE, y + _IMAGE), outline="#cccccc")
        draw.text(
            (x + _IMAGE + 8, y), guess.group.replace("-", "\n", 1), fill="#888888", font=small
        )
        y += _IMAGE + 6
        draw.text((x, y), _cut(guess.truth, 27), fill="black", font=font)
        for name, probability in guess.best:
            y += _LINE
            color = "#1a7f37" if name == guess.truth else "#b42318"
            draw.text((x, y), f"{probability:4.0%}  {_cut(name, 24)}", fill=color, font=small)
    return sheet


def _cut(text: str, length: int) -> str:
    # Pillow's own font has no accented letters.
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text if len(text) <= length else text[: length - 1] + "~"
