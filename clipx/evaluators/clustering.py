"""k-means on image features, compared with the classes: what a model groups by itself."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from clipx import metrics
from clipx.config import config
from clipx.evaluators._classes import read_labeled
from clipx.evaluators._ranks import main_only
from clipx.types import Encoder, Result, Setting, UserError


@config
class Config:
    """A set of images with classes."""

    path: str
    split: str | None = None
    """Folder of the split; null: `test` or `val` where there is one."""
    classes: str | None = None
    """As of zero_shot."""
    seed: int = Field(default=0, ge=0)
    every: str | None = None

    def build(self) -> Clustering:
        return Clustering(self)


class Clustering:
    def __init__(self, settings: Config) -> None:
        self.set = read_labeled(Path(settings.path), settings.split, settings.classes)
        self.seed = settings.seed
        clusters = len(self.set.label.unique())
        if not 1 < clusters < len(self.set):
            raise UserError(
                f"test set {settings.path} has {clusters} classes in {len(self.set)} images: "
                "clusters agree with them whatever the model is; it needs two classes or more, "
                "and more images than classes"
            )

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)
        label = self.set.label
        clusters = len(label.unique())
        found = main_only(
            setting.ranks, lambda: metrics.k_means(features, clusters, seed=self.seed)
        )

        # No intervals: k-means sees the very images that are counted, and both measures shift with
        # the number of images a class, by as much as an interval would be wide.
        return Result(
            {
                "nmi": metrics.normalized_mutual_information(found, label),
                "ari": metrics.adjusted_rand_index(found, label),
                "num_samples": len(label),
            }
        )
