"""An encoder with known embeddings: images are the color of their first pixel, texts a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class ColorEncoder:
    image_size = 8
    scale = 5.0

    def __init__(self, texts: Mapping[str, Sequence[float]]) -> None:
        self.texts = texts

    def fit(self, image: Tensor) -> Tensor:
        return image

    def encode_image(self, images: Any) -> Tensor:
        return F.normalize(torch.stack([image[:, 0, 0].float() for image in images]), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.texts[text] for text in texts], dtype=torch.float32)

    def text_digest(self) -> str:
        return repr(sorted(self.texts.items()))

    def similarity(self, images: Any, texts: Tensor) -> Tensor:
        return self.encode_image(images) @ texts.T
