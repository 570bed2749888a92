"""`clipx eval --picture`: images of test sets with a model's guesses, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from clipx.embed import Encoder
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators.classifier import classifier
from clipx.evaluators.test_sets import evenly_spaced
from clipx.fonts import draw_text, text_width, wrap
from clipx.metrics.chance import chance_level
from clipx.picture_grid import check_picture_path, save_picture
from clipx.types import Result

COLUMNS = 6
IMAGES_PER_SET = 2 * COLUMNS
GUESSES = 3
MAX_CANDIDATES = 1000  # images of a retrieval set, whose captions are embedded
MARGIN = 16
CELL_WIDTH = 210
IMAGE_SIZE = 96
LINE_HEIGHT = 16
TITLE_HEIGHT = 74
SECTION_HEIGHT = 54
TEXT = "#1b1f24"
SOFT = "#5c6570"
RIGHT = "#1a7f37"
WRONG = "#b42318"
LEGEND = (
    ("Below each image: what it shows, then the best guesses.", SOFT),
    ("✓ right", RIGHT),
    ("✗ wrong", WRONG),
    ("37%: probability of a class", SOFT),
    ("0.37: cosine of a caption", SOFT),
)


@dataclass(frozen=True)
class Guess:
    """value: of a class its probability, of a caption its cosine, as text"""

    text: str
    value: str
    is_right: bool


@dataclass(frozen=True)
class Cell:
    """truth: class or captions of the image; guesses: best first"""

    image: Image.Image
    truth: str
    guesses: Sequence[Guess]

    def lines(self) -> list[tuple[str, int, str]]:
        """(text, size, color) below the image, wrapped to the width of a cell."""
        width = CELL_WIDTH - 16
        lines = [(line, 13, TEXT) for line in wrap(self.truth, 13, width, 3)]
        for guess in self.guesses:
            mark = "✓" if guess.is_right else "✗"
            color = RIGHT if guess.is_right else WRONG
            for line in wrap(f"{mark} {guess.value} {guess.text}", 12, width, 2):
                lines.append((line, 12, color))
        return lines


@dataclass(frozen=True)
class Panel:
    """The cells of a test set. facts: one line below its name"""

    name: str
    facts: str
    cells: Sequence[Cell]

    def row_heights(self) -> list[int]:
        heights = []
        for start in range(0, len(self.cells), COLUMNS):
            row = self.cells[start : start + COLUMNS]
            heights.append(IMAGE_SIZE + 22 + LINE_HEIGHT * max(len(c.lines()) for c in row))
        return heights

    @property
    def height(self) -> int:
        """In pixels."""
        return SECTION_HEIGHT + sum(self.row_heights())

    def texts(self) -> list[str]:
        texts = [self.name]
        for cell in self.cells:
            texts += [cell.truth, *(guess.text for guess in cell.guesses)]
        return texts


def is_drawable(evaluator: object) -> bool:
    """Whether a sheet can show images of this evaluator's set."""
    return isinstance(evaluator, zero_shot.Config | retrieval.Config)


def write_contact_sheet(
    encoder: Encoder,
    evaluators: Mapping[str, zero_shot.Config | retrieval.Config],
    out: Path,
    results: Mapping[str, Result] | None = None,
) -> None:
    """Write a picture with some images of each set and the model's guesses. Raises UserError.

    evaluators: by the name of their set
    results: of the same sets, whose rates are shown beside the chance level
    """
    check_picture_path(out)
    results = results or {}
    panels = []
    for name, config in evaluators.items():
        make = classes_panel if isinstance(config, zero_shot.Config) else captions_panel
        panels.append(make(encoder, name, config, results.get(name)))  # type: ignore[bad-argument-type]
    sheet = draw_sheet(f"Guesses of {encoder.source or 'a model'}", panels)
    texts = [text for panel in panels for text in panel.texts()]
    save_picture(sheet, out, [encoder.source, *texts])


def classes_panel(
    encoder: Encoder, name: str, config: zero_shot.Config, result: Result | None
) -> Panel:
    evaluator = config.build()
    labeled = evaluator.set
    weights = classifier(encoder, labeled.names, evaluator.templates)
    cells = []
    # Evenly spaced, not chosen by how well the model does on them.
    for number in evenly_spaced(len(labeled), IMAGES_PER_SET):
        pixels = labeled.images.shown(number)
        probability = (encoder.scale * encoder.encode_image(pixels)[0] @ weights.T).softmax(-1)
        truth = labeled.names[int(labeled.label[number])]
        guesses = []
        for guess in probability.argsort(descending=True)[:GUESSES].tolist():
            class_name = labeled.names[guess]
            value = f"{float(probability[guess]):.0%}"
            guesses.append(Guess(class_name, value, class_name == truth))
        cells.append(Cell(_picture(pixels), truth, guesses))
    counts = {"num_classes": len(labeled.names), "num_samples": len(labeled)}
    facts = (
        f"{len(cells)} of {len(labeled):,} images, evenly spaced; {len(labeled.names):,} classes"
    )
    return Panel(name, facts + _rate("zeroshot-top1", "top-1", counts, result), cells)


def captions_panel(
    encoder: Encoder, name: str, config: retrieval.Config, result: Result | None
) -> Panel:
    whole = config.build().set
    captioned = whole.evenly_spaced(MAX_CANDIDATES)
    text = encoder.encode_text(list(captioned.captions))
    cells = []
    for number in evenly_spaced(len(captioned.images), IMAGES_PER_SET):
        pixels = captioned.images.shown(number)
        cosine = encoder.encode_image(pixels)[0] @ text.T
        is_own = captioned.owner == number
        is_right = captioned.right_captions(number)
        guesses = []
        for guess in cosine.argsort(descending=True)[:GUESSES].tolist():
            value = f"{float(cosine[guess]):.2f}"
            guesses.append(Guess(captioned.captions[guess], value, bool(is_right[guess])))
        own = [captioned.captions[row] for row in torch.nonzero(is_own).flatten().tolist()]
        cells.append(Cell(_picture(pixels), own[0], guesses))
    num_repeated = len(whole.captions) - whole.num_distinct
    counts = {
        "num_samples": len(whole.images),
        "num_captions": whole.num_distinct,
        "num_repeated_captions": num_repeated,
    }
    facts = (
        f"{len(cells)} of {len(whole.images):,} images, evenly spaced; guesses out of "
        f"{len(text):,} captions"
    )
    rate = _rate("image_to_text_R@1", "image to text recall@1", counts, result)
    return Panel(name, facts + rate, cells)


def draw_sheet(title: str, panels: Sequence[Panel]) -> Image.Image:
    """All panels below a title and a legend."""
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = TITLE_HEIGHT + sum(panel.height for panel in panels) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    (line,) = wrap(title, 20, width - 2 * MARGIN, 1)
    draw_text(draw, (MARGIN, 14), line, 20, TEXT)
    x: float = MARGIN
    for text, color in LEGEND:
        draw_text(draw, (x, 46), text, 12, color)
        x += text_width(text, 12) + 24
    top = TITLE_HEIGHT
    for panel in panels:
        draw.line((MARGIN, top, width - MARGIN, top), fill="#d8dce1")
        for text, y, size, color in ((panel.name, 8, 16, TEXT), (panel.facts, 31, 12, SOFT)):
            (line,) = wrap(text, size, width - 2 * MARGIN, 1)
            draw_text(draw, (MARGIN, top + y), line, size, color)
        y = top + SECTION_HEIGHT
        for row, row_height in enumerate(panel.row_heights()):
            for column, cell in enumerate(panel.cells[row * COLUMNS : (row + 1) * COLUMNS]):
                _draw_cell(sheet, draw, cell, MARGIN + column * CELL_WIDTH, y)
            y += row_height
        top += panel.height
    return sheet


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    side = IMAGE_SIZE
    image = ImageOps.contain(cell.image, (side, side), Image.Resampling.LANCZOS)
    corner = (x + 1 + (side - image.width) // 2, y + 1 + (side - image.height) // 2)
    sheet.paste(image, corner)
    draw.rectangle((x, y, x + IMAGE_SIZE + 1, y + IMAGE_SIZE + 1), outline="#cccccc")
    y += IMAGE_SIZE + 6
    for text, size, color in cell.lines():
        draw_text(draw, (x, y), text, size, color)
        y += LINE_HEIGHT


def _rate(metric: str, title: str, counts: Mapping[str, float], result: Result | None) -> str:
    """A rate beside its chance level, as far as they are known."""
    parts = []
    if result is not None and metric in result.metrics:
        parts.append(f"{result.metrics[metric]:.1%}")
    chance = chance_level(metric, counts)
    if chance is not None:  # None with repeated captions
        parts.append(f"by chance {chance:.2%}")
    return f"; {title} {', '.join(parts)}" if parts else ""


def _picture(pixels: Tensor) -> Image.Image:
    """pixels: (3, H, W) uint8"""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
