"""Contact sheets: where pictures, boxes and texts are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipx.picture_grid import (
    COLUMNS,
    MAX_SIDE,
    PICTURE_SIDE,
    TILE_WIDTH,
    TITLE_HEIGHT,
    Section,
    Tile,
    draw_grid,
    num_that_fit,
    write_grid,
)
from clipx.types import UserError

RED = (255, 0, 0)
WHITE = (255, 255, 255)


def middle(sheet: Image.Image, column: int, top: int) -> tuple[int, ...]:
    x = 12 + column * TILE_WIDTH + PICTURE_SIDE // 2
    color = sheet.getpixel((x, top + TITLE_HEIGHT + PICTURE_SIDE // 2 + 20))
    assert isinstance(color, tuple)
    return color


def test_tiles_are_below_their_titles_and_wrap() -> None:
    red = Tile(Image.new("RGB", (8, 8), RED), ("a line",))
    first = Section("first", [red] * (COLUMNS + 1))
    second = Section("second", [Tile(None)])
    sheet = draw_grid([first, second])
    assert sheet.size == (COLUMNS * TILE_WIDTH + 12, first.height + second.height)
    assert [middle(sheet, column, 0) for column in range(COLUMNS)] == [RED] * COLUMNS
    assert middle(sheet, 0, first.row_height) == RED
    assert middle(sheet, 1, first.row_height) == WHITE
    assert middle(sheet, 0, first.height) == (242, 242, 242), "a picture that is gone is a gray box"


def test_a_picture_keeps_its_shape() -> None:
    sheet = draw_grid([Section("", [Tile(Image.new("RGB", (40, 10), RED))])])
    is_red = (np.asarray(sheet)[TITLE_HEIGHT:, :TILE_WIDTH] == RED).all(axis=2)
    rows, columns = np.nonzero(is_red)
    height = int(np.ptp(rows)) + 1
    # The frame of the box covers a pixel at the left and at the right.
    assert (int(np.ptp(columns)) + 3, height) == (PICTURE_SIDE, PICTURE_SIDE // 4)


@pytest.mark.parametrize("text", ["W" * 500, "il" * 500, "a line with words " * 40, "日本語", ""])
def test_a_long_text_does_not_reach_the_next_tile(text: str) -> None:
    sheet = draw_grid([Section(text, [Tile(None, (text, text))])])
    pixels = np.asarray(sheet)
    assert (pixels[TITLE_HEIGHT:, TILE_WIDTH + 6 :] == 255).all()
    assert (pixels[:TITLE_HEIGHT, -6:] == 255).all()


def test_sections_are_drawn_as_long_as_there_is_room() -> None:
    assert num_that_fit([100] * 10) == 10
    assert num_that_fit([MAX_SIDE // 2] * 5) == 2
    assert num_that_fit([2 * MAX_SIDE, 10]) == 1, "one at least"
    assert num_that_fit([]) == 0


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("new/a.JPG", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_ending_of_the_name_is_the_format(tmp_path: Path, name: str, kind: str) -> None:
    write_grid([Section("title", [Tile(None, ("x",))])], tmp_path / name)
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == kind
    assert len(list((tmp_path / name).parent.iterdir())) == 1, "no temporary file is left"


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--picture .*a\.png cannot be written"):
        write_grid([], tmp_path / "file/a.png")
    with pytest.raises(UserError, match=r"must end with one of \.png"):
        write_grid([], tmp_path / "a.gif")
