"""How much zero-shot accuracy depends on the wording: each template alone, their spread, and what
taking all of them together gains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import classifier
from clipx.evaluators.zero_shot import ZeroShot
from clipx.types import Encoder, Result, Setting


@config
class Config:
    """A set of images with classes, as of zero_shot."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    classes: str | None = None
    templates: str | None = None
    every: str | None = None

    def build(self) -> PromptSensitivity:
        return PromptSensitivity(self)


class PromptSensitivity:
    def __init__(self, settings: Config) -> None:
        self.inner = ZeroShot(
            Path(settings.path),
            split=settings.split,
            classes=settings.classes,
            templates=settings.templates,
        )

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        labeled, templates = self.inner.set, self.inner.templates
        features = labeled.features(encoder, setting)

        def hits(chosen: list[str]) -> Tensor:
            weights = classifier(encoder, labeled.names, chosen, setting)
            return ((features @ weights.T).argmax(1) == labeled.label).double()

        alone = {template: hits([template]) for template in templates}
        return sensitivity_result(alone, hits(templates), list(labeled.images.keys))


def sensitivity_result(alone: dict[str, Tensor], together: Tensor, keys: list[str]) -> Result:
    """alone: by template (N,) hits"""
    rates = torch.stack(list(alone.values()))  # (templates, N)

    def spread(rows: Tensor) -> float:
        by_template = rates[:, rows].mean(1)
        return (by_template.max() - by_template.min()).item()

    means = rates.mean(1)
    single = rates.mean(0)
    samples = {"ensemble-top1": together, "single-top1": single}
    gain = together - single
    table = [
        {"template": template, "top1": hit.mean().item(), "low": low, "high": high}
        for template, hit in alone.items()
        for low, high in [metrics.mean_interval(hit)]
    ]
    every = torch.arange(len(together))
    return Result(
        {
            "ensemble-top1": together.mean().item(),
            "single-top1": single.mean().item(),
            "best-top1": means.max().item(),
            "worst-top1": means.min().item(),
            "template_gap": spread(every),
            "ensemble_gain": gain.mean().item(),
            "num_samples": len(together),
        },
        {n: metrics.mean_interval(v) for n, v in samples.items()}
        | {
            "template_gap": metrics.bootstrap_interval(spread, len(together)),
            "ensemble_gain": metrics.bootstrap_interval(
                lambda i: gain[i].mean().item(), len(together)
            ),
        },
        keys,
        samples,
        {"templates": sorted(table, key=lambda row: row["top1"])},
    )
