"""k-means on image features, compared with the classes."""

from __future__ import annotations

from pydantic import Field
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from clipx.config import config
from clipx.evaluators.distributed import on_main
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.types import ImageTextEncoder, Result, Setting, UserError

STARTS = 10  # of k-means; the best is kept


@config
class Config(LabeledConfig):
    """A set of images with classes."""

    seed: int = Field(default=0, ge=0)
    """Of the first centers."""

    def build(self) -> Clustering:
        return Clustering(self)


class Clustering:
    def __init__(self, settings: Config) -> None:
        self.set = settings.read()
        self.seed = settings.seed
        self.num_clusters = len(self.set.label.unique())
        if not 1 < self.num_clusters < len(self.set):
            raise UserError(
                f"test set {self.set.images.path} has {self.num_clusters} classes in "
                f"{len(self.set)} images: clusters agree with them whatever the model is; it "
                "needs two classes or more, and more images than classes"
            )

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        features = self.set.features(encoder, setting)
        nmi, ari = on_main(setting, self._agreement, features)
        # No intervals: k-means sees the very images that are counted, and both measures shift with
        # the number of images a class, by as much as an interval would be wide.
        result = Result()
        result.add("nmi", nmi)
        result.add("ari", ari)
        result.add("num_samples", len(self.set))
        return result

    def _agreement(self, features: Tensor) -> tuple[float, float]:
        """(normalized mutual information, adjusted Rand index) of clusters and classes."""
        # A model that collapses gives fewer distinct rows than clusters, and k-means warns of it.
        num_distinct = len(features.unique(dim=0))
        num_clusters = min(self.num_clusters, num_distinct)
        k_means = KMeans(num_clusters, n_init=STARTS, random_state=self.seed)
        clusters = k_means.fit_predict(features.numpy())
        label = self.set.label.numpy()
        nmi = normalized_mutual_info_score(label, clusters)
        ari = adjusted_rand_score(label, clusters)
        return float(nmi), float(ari)
