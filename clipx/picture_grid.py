"""Contact sheets: pictures in rows below titles, each above a few lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from clipx.files import replacing
from clipx.fonts import draw_text, missing_message, wrap
from clipx.progress import note
from clipx.types import UserError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
COLUMNS = 8
PICTURE_SIDE = 128
TILE_WIDTH = PICTURE_SIDE + 12
LINE_HEIGHT = 14
TITLE_HEIGHT = 26
MAX_SIDE = 16_000
"""Pixels of a sheet's height: WebP holds 16,383, and viewers are slow beyond."""


@dataclass(frozen=True)
class Tile:
    """image: None is drawn as a crossed box; lines: of text below it"""

    image: Image.Image | None
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """Tiles below a title, COLUMNS of them in a row."""

    title: str
    tiles: Sequence[Tile]

    @property
    def height(self) -> int:
        """In pixels."""
        num_rows = -(-len(self.tiles) // COLUMNS)
        return TITLE_HEIGHT + num_rows * self.row_height

    @property
    def row_height(self) -> int:
        num_lines = max((len(tile.lines) for tile in self.tiles), default=0)
        return PICTURE_SIDE + num_lines * LINE_HEIGHT + 14


def check_picture_path(path: Path) -> None:
    """Raises UserError unless the ending of the name is that of a picture."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {path} must end with one of {', '.join(FORMATS)}")


def num_that_fit(heights: Sequence[int]) -> int:
    """How many sections of these heights a sheet has room for; at least one."""
    total = 0
    for number, height in enumerate(heights):
        total += height
        if number and total > MAX_SIDE:
            return number
    return len(heights)


def write_grid(sections: Sequence[Section], path: Path) -> None:
    """Raises UserError for a path that cannot be written.

    path: of one of FORMATS
    """
    check_picture_path(path)
    save_picture(draw_grid(sections), path, _texts(sections))


def save_picture(sheet: Image.Image, path: Path, texts: Iterable[str]) -> None:
    """Raises UserError for a path that cannot be written.

    path: of one of FORMATS; texts: that are drawn on it
    """
    if message := missing_message(texts):
        note(f"{path}: {message}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # The temporary name has another ending, from which Pillow would guess.
            sheet.save(temporary, FORMATS[path.suffix.lower()])
    except OSError as error:
        raise UserError(f"--picture {path} cannot be written: {error}") from error


def _texts(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield section.title
        for tile in section.tiles:
            yield from tile.lines


def draw_grid(sections: Sequence[Section]) -> Image.Image:
    height = sum(section.height for section in sections)
    sheet = Image.new("RGB", (COLUMNS * TILE_WIDTH + 12, max(1, height)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for section in sections:
        (title,) = wrap(section.title, 14, sheet.width - 24, 1)
        draw_text(draw, (12, top + 7), title, 14, "black")
        for number, tile in enumerate(section.tiles):
            row, column = divmod(number, COLUMNS)
            y = top + TITLE_HEIGHT + row * section.row_height
            _draw_tile(sheet, draw, tile, 12 + column * TILE_WIDTH, y)
        top += section.height
    return sheet


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    side = PICTURE_SIDE
    box = (x, y, x + side - 1, y + side - 1)
    if tile.image is None:
        draw.rectangle(box, fill="#f2f2f2", outline="#cccccc")
        draw.line((x, y, x + side - 1, y + side - 1), fill="#cccccc")
        draw.line((x, y + side - 1, x + side - 1, y), fill="#cccccc")
    else:
        image = ImageOps.contain(tile.image, (side, side), Image.Resampling.LANCZOS)
        sheet.paste(image, (x + (side - image.width) // 2, y + (side - image.height) // 2))
        draw.rectangle(box, outline="#dddddd")
    y += side + 3
    for number, line in enumerate(tile.lines):
        color = "black" if number == 0 else "#777777"
        (text,) = wrap(line, 11, side, 1)
        draw_text(draw, (x, y), text, 11, color)
        y += LINE_HEIGHT
