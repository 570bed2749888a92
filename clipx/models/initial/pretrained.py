"""Weights that open_clip publishes under a tag, downloaded and cached by open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from clipx.config import config
from clipx.models.hub import OFFLINE
from clipx.models.initial import Initial
from clipx.models.weights import fill
from clipx.types import UserError


@config
class Config:
    """Which weights."""

    tag: str
    """One of the model's tags in `open_clip.list_pretrained()`, such as `laion2b_s34b_b79k`."""
    model: str | None = None
    """open_clip's name of the model that the tag belongs to; null: `model.name`."""

    def build(self) -> Pretrained:
        return Pretrained(self.tag, self.model)


class Pretrained(Initial):
    def __init__(self, tag: str, model: str | None) -> None:
        self._tag = tag
        self._model = model
        self._file: Path | None = None

    def of_model(self, name: str) -> Pretrained:
        named = Pretrained(self._tag, self._model or name)
        named._entry()  # an unknown tag is an error before anything is built
        return named

    def adapt(self, cfg: dict[str, Any]) -> dict[str, Any]:
        entry = self._entry()
        trained = entry.get("quick_gelu", False)
        configured = cfg.get("quick_gelu", False)
        # open_clip only warns and trains on. timm's towers have an activation of their own.
        if trained != configured and not cfg["vision_cfg"].get("timm_model_name"):
            name = str(self._model).removesuffix("-quickgelu")
            remedy = f"use model.name {name}-quickgelu" if trained else "remove it"
            raise UserError(
                f"model.initial.tag {self._tag} was trained with quick_gelu {trained}, and the "
                f"model has quick_gelu {configured}: {remedy}, or set it in your own model JSON"
            )
        return self.with_preprocessing(cfg)

    def with_preprocessing(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """The JSON with the `preprocess_cfg` that the weights were trained with. Raises
        UserError."""
        from open_clip.transform import merge_preprocess_dict

        # Settings of the model's JSON win over those of the weights.
        preprocessing = merge_preprocess_dict({}, self._entry()) | cfg.get("preprocess_cfg", {})
        preprocessing.pop("size", None)  # the model's image_size holds
        return {**cfg, "preprocess_cfg": preprocessing}

    def prepare(self) -> None:
        from open_clip.pretrained import download_pretrained

        try:
            self._file = Path(download_pretrained(self._entry()))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.initial pretrained cannot be fetched: {error}\n{OFFLINE}"
            ) from error

    @property
    def source(self) -> str:
        return str(self._file)

    def load(self, model: nn.Module) -> list[str]:
        assert self._file is not None, "prepare() comes first"
        return fill(model, self._file)

    def _entry(self) -> dict[str, Any]:
        """open_clip's record of the tag. Raises UserError."""
        from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

        name = (self._model or "").replace("/", "-")  # OpenAI writes ViT-B/32
        entry = get_pretrained_cfg(name, self._tag)
        if entry:
            return entry
        # Either the tag or the model is unknown; the remedies differ.
        tags = list_pretrained_tags_by_model(name)
        if tags:
            raise UserError(
                f"model.initial.tag {self._tag!r} is none of open_clip's for {name}, "
                f"which are {', '.join(tags)}"
            )
        raise UserError(
            f"model.initial.tag {self._tag!r}: open_clip publishes no weights for {self._model!r}; "
            "set model.initial.model to the name of the model that the tag belongs to"
        )
