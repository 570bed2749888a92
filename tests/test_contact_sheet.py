"""`clipx eval --picture`: one cell for each drawn image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from samples import solid, write_test_set

from clipx.contact_sheet import CELL_HEIGHT, CELL_WIDTH, COLUMNS, write_contact_sheet
from clipx.evaluators import zero_shot


class RedOrBlue:
    """Takes every image for a red one."""

    image_size, scale = 8, 1.0

    def encode_image(self, image: Any) -> torch.Tensor:
        return torch.tensor([[1.0, 0]])

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[1.0, 0] if text == "red" else [0.0, 1] for text in texts])


def test_each_image_has_a_cell_with_its_pixels(tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 0, 255)]
    samples = {f"{n}": {"png": solid(colors[n % 2]), "cls": str(n % 2)} for n in range(7)}
    files = {"classnames": ["red", "blue"], "zeroshot_classification_templates": ["{c}"]}
    path = write_test_set(tmp_path / "set", samples, **files)
    encoder: Any = RedOrBlue()
    write_contact_sheet(encoder, {"set": zero_shot.Config(path=str(path))}, tmp_path / "a/b.png")
    sheet = Image.open(tmp_path / "a/b.png")
    assert sheet.size == (COLUMNS * CELL_WIDTH, 2 * CELL_HEIGHT)
    for number in range(7):
        row, column = divmod(number, COLUMNS)
        middle = (column * CELL_WIDTH + 50, row * CELL_HEIGHT + 50)
        assert sheet.getpixel(middle) == colors[number % 2]
    assert sheet.getpixel((2 * CELL_WIDTH - 1, 2 * CELL_HEIGHT - 1)) == (255, 255, 255)
