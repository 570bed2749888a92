"""`clipx eval --picture`: one cell for each drawn image, in panels with their chance levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from samples import solid, write_test_set

from clipx import contact_sheet
from clipx.contact_sheet import (
    CELL_WIDTH,
    COLUMNS,
    IMAGE_SIZE,
    MARGIN,
    SECTION_HEIGHT,
    TITLE_HEIGHT,
    Cell,
    Guess,
    Panel,
    captions_panel,
    classes_panel,
    draw_sheet,
    write_contact_sheet,
)
from clipx.evaluators import retrieval, zero_shot
from clipx.types import Result, UserError

COLORS = [(255, 0, 0), (0, 0, 255)]


class RedOrBlue:
    """Takes every image for a red one, and of captions only `red` for one of red."""

    image_size, scale, source = 8, 1.0, "runs/a at step 3"

    def encode_image(self, image: Any) -> torch.Tensor:
        return torch.tensor([[1.0, 0]])

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0] if text == "red" else [0.0, 1] for text in texts])


ENCODER: Any = RedOrBlue()


@pytest.fixture
def classes(tmp_path: Path) -> zero_shot.Config:
    samples = {f"{n}": {"png": solid(COLORS[n % 2]), "cls": str(n % 2)} for n in range(7)}
    files = {"classnames": ["red", "blue"], "zeroshot_classification_templates": ["{c}"]}
    return zero_shot.Config(path=str(write_test_set(tmp_path / "set", samples, **files)))


@pytest.fixture
def captions(tmp_path: Path) -> retrieval.Config:
    texts = ["red", "blue\nnavy", "sea", "sky"]
    samples = {f"{n}": {"png": solid(COLORS[n > 0]), "txt": text} for n, text in enumerate(texts)}
    return retrieval.Config(path=str(write_test_set(tmp_path / "captions", samples)))


def test_each_image_has_a_cell_with_its_pixels(classes: zero_shot.Config, tmp_path: Path) -> None:
    write_contact_sheet(ENCODER, {"set": classes}, tmp_path / "a/b.png")
    sheet = Image.open(tmp_path / "a/b.png")
    panel = classes_panel(ENCODER, "set", classes, None)
    assert sheet.size == (COLUMNS * CELL_WIDTH + 2 * MARGIN, TITLE_HEIGHT + panel.height + MARGIN)
    first_row = panel.row_heights()[0]
    for number in range(7):
        row, column = divmod(number, COLUMNS)
        x = MARGIN + column * CELL_WIDTH + IMAGE_SIZE // 2
        y = TITLE_HEIGHT + SECTION_HEIGHT + row * first_row + IMAGE_SIZE // 2
        assert sheet.getpixel((x, y)) == COLORS[number % 2]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_a_panel_of_classes_has_guesses_with_probabilities_and_the_chance_level(
    classes: zero_shot.Config,
) -> None:
    result = Result({"zeroshot-top1": 4 / 7})
    panel = classes_panel(ENCODER, "set", classes, result)
    assert panel.facts == ("7 of 7 images, evenly spaced; 2 classes; top-1 57.1%, by chance 50.00%")
    red, blue = panel.cells[:2]
    assert (red.truth, blue.truth) == ("red", "blue")
    assert red.guesses == [Guess("red", "73%", True), Guess("blue", "27%", False)]
    assert blue.guesses == [Guess("red", "73%", False), Guess("blue", "27%", True)]
    assert "top-1 by chance 50.00%" in classes_panel(ENCODER, "set", classes, None).facts


def test_a_panel_of_captions_has_the_nearest_captions(captions: retrieval.Config) -> None:
    panel = captions_panel(ENCODER, "pairs", captions, Result({"image_to_text_R@1": 0.25}))
    assert panel.facts == (
        "4 of 4 images, evenly spaced; guesses out of 5 captions; "
        "image to text recall@1 25.0%, by chance 25.00%"
    )
    assert [cell.truth for cell in panel.cells] == ["red", "blue", "sea", "sky"]
    assert [cell.guesses[0] for cell in panel.cells] == [
        Guess("red", "1.00", number == 0) for number in range(4)
    ]
    assert len(panel.cells[1].guesses) == 3


def test_candidates_of_a_large_set_are_few(captions: retrieval.Config, monkeypatch: Any) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_CANDIDATES", 2)
    panel = captions_panel(ENCODER, "pairs", captions, None)
    assert panel.facts.startswith("2 of 4 images, evenly spaced; guesses out of 2 captions")


def test_a_long_name_is_wrapped_into_its_own_cell() -> None:
    image = Image.new("RGB", (8, 8), "white")
    long = "Donaudampfschifffahrtsgesellschaftskapitän " * 5
    short = Cell(image, "cat", [])
    panel = Panel("set", "", [Cell(image, long, [Guess(long, "99%", True)]), short, short])
    assert len(panel.cells[0].lines()) == 5
    sheet = np.asarray(draw_sheet("title", [panel]))
    texts_of_row = sheet[TITLE_HEIGHT + SECTION_HEIGHT + IMAGE_SIZE + 24 :]
    second_cell = texts_of_row[:, MARGIN + CELL_WIDTH - 8 : MARGIN + 2 * CELL_WIDTH]
    assert (texts_of_row[:, :CELL_WIDTH] < 128).any()
    assert (second_cell == 255).all(), "nothing but its first line, which is higher"


def test_a_picture_that_cannot_be_written_is_refused(
    classes: zero_shot.Config, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--picture .*a\.png cannot be written"):
        write_contact_sheet(ENCODER, {"set": classes}, tmp_path / "file/a.png")
    with pytest.raises(UserError, match=r"must end with one of \.png"):
        write_contact_sheet(ENCODER, {"set": classes}, tmp_path / "a.gif")


def test_characters_that_no_font_has_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = {f"{n}": {"png": solid(COLORS[n]), "cls": str(n)} for n in range(2)}
    files = {"classnames": ["red", "\U0010fffd"], "zeroshot_classification_templates": ["{c}"]}
    config = zero_shot.Config(path=str(write_test_set(tmp_path / "set", samples, **files)))
    write_contact_sheet(ENCODER, {"set": config}, tmp_path / "b.png")
    assert "b.png: no font has U+10FFFD: drawn as □" in capsys.readouterr().err
