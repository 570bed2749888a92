"""A student of image-text pairs beside a frozen teacher: CLIP-KD (arXiv:2307.12732); with stored
embeddings of the teacher, MobileCLIP (arXiv:2311.17049)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.config import config
from clipx.data.augment import Augmentation
from clipx.losses.distillation import feature_mse, interactive, similarity_kl
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import DataUse, Features, Parts, Views
from clipx.objectives.teacher import Teacher, TeacherRows
from clipx.types import LossOutput, Pool, TeacherInfo, UserError

STORED = "stored"


@config
class Config(DataUse):
    """The loss is the sum of these weights times their terms."""

    teacher: str
    """Any model that `clipx eval` takes, or `stored`: the embeddings in `data.reinforced`."""
    feature: float = Field(default=0.0, ge=0)
    """Squared distance of the student's embeddings from the teacher's."""
    similarity: float = Field(default=1.0, ge=0)
    """KL divergence of the student's softmax over the batch from the teacher's."""
    interactive: float = Field(default=0.0, ge=0)
    """InfoNCE of the student's images with the teacher's texts, and the other way round."""
    contrast: float = Field(default=1.0, ge=0)
    """The run's own `loss`."""
    teacher_scale: float | None = Field(default=None, gt=0)
    """Factor of the teacher's cosines in `similarity`; null: the scale that it has learned."""

    contrasts_text = True
    needs_pixels = True

    def augmentations(self, of_run: Augmentation) -> list[Augmentation]:
        return [of_run]

    def build(self, parts: Parts) -> Distill:
        """Raises UserError."""
        if not (self.feature or self.similarity or self.interactive):
            raise UserError(
                "objective.feature, similarity and interactive are all 0, so that nothing is "
                "learned from the teacher; set one, or objective=image_text"
            )
        if parts.queue and not self.contrast:
            raise UserError(
                f"pool.queue {parts.queue}: objective.contrast is 0, and rows of earlier steps are "
                "negatives of that loss alone; set pool.queue=0"
            )
        teacher = None  # of stored embeddings, which need no model
        if self.teacher == STORED:
            info = parts.stored_teacher
            if info is None:
                raise UserError(
                    "objective.teacher stored: data.reinforced names no folder; set it to one that "
                    "`clipx data reinforce` has written"
                )
        else:
            teacher = parts.load_teacher(self.teacher)
            info = teacher.info
        return Distill(
            self,
            info,
            teacher,
            parts.embed_dim,
            parts.encoder,
            parts.loss,
            **parts.of_pairs,
        )


class Distill(ImageText):
    """Views: those of ImageText; teacher_image and teacher_text (B, T) where they are stored.
    Features: those of ImageText, with teacher_image and teacher_text (B, T) of unit norm."""

    def __init__(
        self,
        weights: Config,
        info: TeacherInfo,
        teacher: Teacher | None,
        embed_dim: int,
        *parts: Any,
        **settings: Any,
    ) -> None:
        """teacher: None where the views have its embeddings; embed_dim: of the student"""
        super().__init__(*parts, **settings)
        self._weights = weights
        self._info = info
        self._rows = None if teacher is None else TeacherRows(teacher)
        self._teacher_scale = weights.teacher_scale or info.scale
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        # Distances and cosines between both models need one width; similarities within each do not.
        compares_rows = weights.feature or weights.interactive
        if compares_rows and embed_dim != info.embed_dim:
            self.image_projection = nn.Linear(embed_dim, info.embed_dim)
            self.text_projection = nn.Linear(embed_dim, info.embed_dim)

    def embed(self, views: Views) -> Features:
        features = super().embed(views)
        if self._rows is None:
            of_image = views["teacher_image"]
            of_text = views["teacher_text"]
        else:
            of_image, of_text = self._rows(views["image"], views["text"])
        features["teacher_image"] = F.normalize(of_image.float(), dim=-1)
        features["teacher_text"] = F.normalize(of_text.float(), dim=-1)
        return features

    def loss(self, features: Features, pool: Pool) -> LossOutput:
        weights = self._weights
        image = features["image"]
        text = features["text"]
        teacher_image = features["teacher_image"].detach()
        teacher_text = features["teacher_text"].detach()
        scale = self.encoder.logit_scale.exp()
        metrics: dict[str, Tensor] = {}
        if weights.contrast:
            pairs = super().loss(features, pool)
            metrics = {**pairs.metrics, "pair_loss": pairs.loss.detach()}
            total = weights.contrast * pairs.loss
        else:
            # DDP waits for gradients of the temperature and the bias.
            bias = self.encoder.logit_bias
            total = 0 * scale if bias is None else 0 * (scale + bias)

        if weights.similarity:
            term = similarity_kl(
                image, text, scale, teacher_image, teacher_text, self._teacher_scale, pool
            )
            metrics["similarity_loss"] = term.detach()
            total = total + weights.similarity * term

        if weights.feature or weights.interactive:
            image = F.normalize(self.image_projection(image), dim=-1)
            text = F.normalize(self.text_projection(text), dim=-1)
        if weights.feature:
            of_image = feature_mse(image, teacher_image)
            of_text = feature_mse(text, teacher_text)
            term = of_image + of_text
            metrics["feature_loss"] = term.detach()
            total = total + weights.feature * term
        if weights.interactive:
            term = interactive(image, text, teacher_image, teacher_text, scale, pool)
            metrics["interactive_loss"] = term.detach()
            total = total + weights.interactive * term
        return LossOutput(total, metrics)

    def after_step(self) -> dict[str, Tensor]:
        if self._rows is not None:
            self._rows.clear()
        return super().after_step()

    def get_extra_state(self) -> dict[str, Tensor]:
        digest = bytes.fromhex(self._info.digest)
        return {"teacher": torch.tensor(list(digest), dtype=torch.uint8)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Raises UserError if the run had another teacher."""
        if not torch.equal(state["teacher"].cpu(), self.get_extra_state()["teacher"]):
            raise UserError(
                f"objective.teacher: {self._info.source} is not the teacher that this run began "
                "with; give it the same model, or start a run with another run_dir"
            )
