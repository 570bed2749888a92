"""How much zero-shot accuracy depends on the wording: each template alone, their spread, and what
taking all of them together gains."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import classifier
from clipx.evaluators._means import add_mean, add_value, zero_shot_hits
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
            return zero_shot_hits(features, weights, labeled.label)

        alone = {template: hits([template]) for template in templates}
        return sensitivity_result(alone, hits(templates), list(labeled.images.keys))


def sensitivity_result(alone: dict[str, Tensor], together: Tensor, keys: list[str]) -> Result:
    """alone: by template (N,) hits"""
    rates = torch.stack(list(alone.values()))  # (templates, N)
    single = rates.mean(0)
    result = Result({"num_samples": len(together)}, keys=keys)
    add_mean(result, "ensemble-top1", together)
    add_mean(result, "single-top1", single)

    # Selected among the templates by the images they are measured on: intervals allow for that.
    means, groups = rates.mean(1), [(hits, None) for hits in rates]
    add_value(result, "best-top1", means.max().item(), metrics.best_interval(groups))
    add_value(result, "worst-top1", means.min().item(), metrics.worst_interval(groups))

    # No interval: the best less the worst of equal templates is above 0 by noise alone.
    add_value(result, "template_gap", (means.max() - means.min()).item())

    gain = together - single
    add_value(result, "ensemble_gain", gain.mean().item(), metrics.student_interval(gain))
    table = [
        {"template": template, "top1": hits.mean().item()}
        | metrics.ends(metrics.share_interval(hits))
        for template, hits in alone.items()
    ]
    result.tables["templates"] = sorted(table, key=lambda row: row["top1"])
    return result
