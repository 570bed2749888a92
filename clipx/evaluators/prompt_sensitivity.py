"""How much zero-shot accuracy depends on the wording: each template alone, their spread, and the
gain of the mean of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.classifier import Templates, classifier, nearest_class_hits
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.evaluators.zero_shot import ZeroShot
from clipx.types import ImageTextEncoder, Result, Setting


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    templates: Templates = None
    """As of zero_shot."""

    def build(self) -> PromptSensitivity:
        return PromptSensitivity(ZeroShot(self, self.templates))


class PromptSensitivity:
    def __init__(self, zero_shot: ZeroShot) -> None:
        self.set = zero_shot.set
        self.templates = zero_shot.templates

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)

        def hits(templates: list[str]) -> Tensor:
            weights = classifier(encoder, self.set.names, templates, setting)
            return nearest_class_hits(features, weights, self.set.label)

        alone = {template: hits([template]) for template in self.templates}
        images = self.set.images
        return sensitivity_result(alone, hits(self.templates), images.keys, images.clusters)


def sensitivity_result(
    alone: dict[str, Tensor],
    ensemble: Tensor,
    keys: Sequence[str],
    clusters: Tensor | None = None,
) -> Result:
    """alone: template -> (N,) hits of its classifier; ensemble: (N,) hits of that of all;
    clusters: (N,) as in Result"""
    result = Result(keys=keys, clusters=clusters)
    hits = torch.stack(list(alone.values()))  # (templates, N)
    single = hits.mean(0)
    metrics.add_rate(result, "ensemble-top1", ensemble)
    metrics.add_rate(result, "single-top1", single)

    # Selected among the templates by the images they are measured on: intervals allow for that.
    rates = hits.mean(1)
    best = rates.max().item()
    worst = rates.min().item()
    groups = [metrics.by_cluster(of_template, None, clusters) for of_template in hits]
    result.add("best-top1", best, metrics.best_interval(groups))
    result.add("worst-top1", worst, metrics.worst_interval(groups))
    # No interval: the best less the worst of equal templates is above 0 by noise alone.
    result.add("template_gap", best - worst)

    # Between -1 and 1 for each image, so not a rate.
    gain = ensemble - single
    result.add("ensemble_gain", gain.mean().item(), metrics.student_interval(gain, clusters))
    result.add("num_samples", len(ensemble))

    rows = []
    for template, of_template in alone.items():
        rows.append(
            {"template": template} | metrics.rate_row("top1", of_template, clusters=clusters)
        )
    result.tables["templates"] = sorted(rows, key=lambda row: row["top1"])
    return result
