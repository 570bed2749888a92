"""Models whose embeddings mean nothing get an error that names the sample, and no score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from samples import png, write_test_set
from torch import Tensor

from clipx.evaluators import embedding_health, retrieval, zero_shot
from clipx.types import EmbeddingError, ImageTextEncoder, Setting


class Damaged:
    """Unit rows, but for the second image or text of a call."""

    image_size, scale = 8, 10.0

    def __init__(self, part: str, value: float) -> None:
        self.part, self.value = part, value

    def fit(self, image: Tensor) -> Tensor:
        return image

    def _rows(self, count: int, part: str) -> Tensor:
        rows = torch.eye(16)[:count].clone()
        if part == self.part:
            rows[1] = self.value
        return rows

    def encode_image(self, images: Any) -> Tensor:
        return self._rows(len(images), "image")

    def encode_text(self, texts: list[str]) -> Tensor:
        return self._rows(len(texts), "text")

    def text_digest(self) -> str:
        return "damaged"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 0.5])
@pytest.mark.parametrize("part", ["image", "text"])
@pytest.mark.parametrize("kind", ["zero_shot", "retrieval", "embedding_health"])
def test_no_score_is_made_of_rows_that_are_not_of_unit_norm(
    kind: str, part: str, value: float, tmp_path: Path
) -> None:
    label = "cls" if kind == "zero_shot" else "txt"
    samples = {f"k{n}": {"png": png(n), label: str(n)} for n in range(3)}
    classes = {
        "classnames": ["zero", "one", "two"],
        "zeroshot_classification_templates": ["{c}"],
    }
    path = write_test_set(tmp_path, samples, **(classes if kind == "zero_shot" else {}))
    configs = {
        "zero_shot": zero_shot.Config,
        "retrieval": retrieval.Config,
        "embedding_health": embedding_health.Config,
    }
    encoder: ImageTextEncoder = Damaged(part, value)
    named = r"0\.tar/k1" if part == "image" else "'one'" if kind == "zero_shot" else "'1'"
    with pytest.raises(EmbeddingError, match=rf"1 of 3 {part} embeddings .*\({named}\)"):
        configs[kind](path=str(path)).build().evaluate(encoder, Setting())
