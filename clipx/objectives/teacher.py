"""A frozen model whose embeddings a student learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.types import TeacherInfo


@dataclass(frozen=True)
class Teacher:
    """No nn.Module, so that an objective neither saves it, nor trains, copies or shards it.

    encode_image: (B, 3, H, W) uint8 on the device, as the student sees them -> (B, D) float32 of
        unit norm, without a graph
    encode_text: (B, T) int64 token ids of the student's tokenizer -> the same of captions
    """

    info: TeacherInfo
    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]


class TeacherRows:
    """The teacher's embeddings of a step, computed once for each micro-batch.

    GradCache embeds each micro-batch twice, first without and then with gradients, from the same
    tensors.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(of images, of captions), (B, D) each"""
        # An entry holds its image, so that no other tensor can have this id.
        kept = self._kept.pop(id(image), None)
        if kept is not None:
            return kept[1], kept[2]
        of_image = self.teacher.encode_image(image)
        of_text = self.teacher.encode_text(text)
        if not torch.is_grad_enabled():
            self._kept[id(image)] = (image, of_image, of_text)
        return of_image, of_text

    def clear(self) -> None:
        """Called after each step."""
        self._kept.clear()
