"""The weights that open_clip publishes under a tag, downloaded and cached by open_clip itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from clipx.config import config
from clipx.models.hub import OFFLINE
from clipx.models.initial._weights import fill
from clipx.types import UserError


@config
class Config:
    """Which weights."""

    tag: str
    """One of those that `open_clip.list_pretrained()` has for the model, such as
    `laion2b_s34b_b79k`."""
    model: str | None = None
    """open_clip's name of the model that the tag belongs to; null: `model.name`."""

    def build(self) -> Pretrained:
        return Pretrained(self._found())

    def of_model(self, name: str) -> Config:
        return self if self.model else replace(self, model=name)

    def with_preprocessing(self, cfg: dict[str, Any]) -> dict[str, Any]:
        """`cfg` with the mean, standard deviation etc. that the weights were trained with. Raises
        UserError where the activation is another."""
        from open_clip.transform import merge_preprocess_dict

        found = self._found()
        quick, has = found.get("quick_gelu", False), cfg.get("quick_gelu", False)
        # open_clip trains on after a warning; timm's towers have their own activation.
        if quick != has and not cfg["vision_cfg"].get("timm_model_name"):
            remedy = f"take model.name {self.model}-quickgelu" if quick else "take it out"
            raise UserError(
                f"model.initial.tag {self.tag} was trained with quick_gelu {quick}, and the model "
                f"has quick_gelu {has}: {remedy}, or set it in a model JSON of your own"
            )
        told = merge_preprocess_dict({}, found) | cfg.get("preprocess_cfg", {})
        told.pop("size", None)  # the model's own image_size tells
        return {**cfg, "preprocess_cfg": told}

    def _found(self) -> dict[str, Any]:
        """open_clip's entry. Raises UserError."""
        from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

        name = (self.model or "").replace("/", "-")
        found = get_pretrained_cfg(name, self.tag)
        if found:
            return found
        if tags := list_pretrained_tags_by_model(name):
            raise UserError(
                f"model.initial.tag {self.tag!r} is none of open_clip's for {name}, "
                f"which are {', '.join(tags)}"
            )
        raise UserError(
            f"model.initial.tag {self.tag!r}: open_clip publishes no weights for {self.model!r}; "
            "set model.initial.model to the name of the model that the tag belongs to"
        )


class Pretrained:
    def __init__(self, found: dict[str, Any]) -> None:
        """found: open_clip's entry of the tag"""
        self._entry = found
        self._file: Path | None = None

    def prepare(self) -> None:
        from open_clip.pretrained import download_pretrained

        try:
            self._file = Path(download_pretrained(self._entry))
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
