"""Images of a test set with the classes that a model guesses, as one picture."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_WIDTH = 210
CELL_HEIGHT = 190
IMAGE_SIZE = 96
LINE_HEIGHT = 15


@dataclass(frozen=True)
class Guess:
    """One image and the model's best classes for it.

    image: (3, H, W) uint8
    truth: name of its class
    best: (class, probability), most probable first
    group: name of the test set
    """

    image: Tensor
    truth: str
    best: list[tuple[str, float]]
    group: str


def contact_sheet(guesses: list[Guess], *, columns: int) -> Image.Image:
    """Draw a grid of images, each above its class and the guesses, right ones in green."""
    num_rows = -(-len(guesses) // columns)
    sheet = Image.new("RGB", (columns * CELL_WIDTH, num_rows * CELL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    small_font = ImageFont.load_default(11)
    for number, guess in enumerate(guesses):
        row, column = divmod(number, columns)
        x = column * CELL_WIDTH + 8
        y = row * CELL_HEIGHT + 6
        image = Image.fromarray(guess.image.permute(1, 2, 0).numpy())
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
        sheet.paste(image, (x, y))
        draw.rectangle((x - 1, y - 1, x + IMAGE_SIZE, y + IMAGE_SIZE), outline="#cccccc")

        # Only a narrow column is left beside the image, so a long name of a set takes two lines.
        group = guess.group.replace("-", "\n", 1)
        draw.text((x + IMAGE_SIZE + 8, y), group, fill="#888888", font=small_font)
        y += IMAGE_SIZE + 6
        draw.text((x, y), ascii_text(guess.truth, 27), fill="black", font=font)
        for name, probability in guess.best:
            y += LINE_HEIGHT
            color = "#1a7f37" if name == guess.truth else "#b42318"
            line = f"{probability:4.0%}  {ascii_text(name, 24)}"
            draw.text((x, y), line, fill=color, font=small_font)
    return sheet


def ascii_text(text: str, length: int) -> str:
    """The text without accents, since Pillow's own font has no such letters, cut to `length`."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text if len(text) <= length else text[: length - 1] + "~"
