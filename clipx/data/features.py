"""Batches of cached features instead of pictures and words, for heads on locked trunks."""

from __future__ import annotations

import numpy as np

from clipx.data.config import DataConfig
from clipx.data.feature_cache import FeatureCache
from clipx.data.loader import Loaded, fingerprint
from clipx.data.order import batch_positions, uniforms
from clipx.types import UserError


def augmentation_faults(config: DataConfig) -> list[str]:
    """Why this corpus cannot be cached: a random view of a picture has no one feature."""
    faults = []
    if config.augmentation.is_random:
        faults.append(
            "cache_features needs pictures without random augmentation: "
            "set data.crop_scale: [1, 1], data.crop_ratio: [1, 1] and no flip, jitter or gray scale"
        )
    if not isinstance(config.caption_field, str):
        faults.append("cache_features draws all captions alike: give one data.caption_field")
    return faults


class FeatureBatches:
    """What `Batches` would load, as the trunks see it: the same samples, captions, order and
    fingerprints. `image` and `text` are (B, ...) float32 features."""

    def __init__(
        self, cache: FeatureCache, *, global_batch_size: int, rank: int, world_size: int
    ) -> None:
        assert cache.complete, "the caller builds it"
        self.cache, self.corpus, self.config = cache, cache.corpus, cache.config
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.texts = cache.texts()
        sizes = self.corpus.sizes
        self.shard_start = np.cumsum(sizes) - sizes

    def __getitem__(self, index: int) -> Loaded:
        size = self.global_batch_size
        positions = batch_positions(index, size, rank=self.rank, world_size=self.world_size)
        located = self.corpus.locate(positions)
        shard, sample, bad = located.shard.copy(), located.sample.copy(), []
        for row in np.flatnonzero(~self._usable(shard, sample)):
            used = self.corpus.usable(
                int(positions[row]), int(shard[row]), int(sample[row]), self.cache.pixels
            )
            shard[row], sample[row] = used.shard, used.sample
            self._check(used.key, used.shard, used.sample)
            bad += used.bad
        draws = uniforms(self.corpus.order.seed, positions[:, None], 1)[:, 0]
        text = self.texts.draw(self.shard_start[shard] + sample, draws)
        pairs = zip(shard.tolist(), sample.tolist(), strict=True)
        keys = [self.corpus.key(s, i) for s, i in pairs]
        return Loaded(
            views={
                "image": self.cache.read_images(shard, sample),
                "text": self.cache.read_texts(text),
            },
            keys=keys,
            positions=positions.tolist(),
            state={"position": (index + 1) * size},
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )

    def _usable(self, shard: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """True where the sample was good when the features were made."""
        place = self.shard_start[shard] + sample
        return self.texts.first[place + 1] > self.texts.first[place]

    def _check(self, key: str, shard: int, sample: int) -> None:
        """That what stands in for a bad sample has features. Raises UserError."""
        if not self._usable(np.array([shard]), np.array([sample]))[0]:
            raise UserError(
                f"sample {key} of {self.corpus.name(shard)} could not be read when the "
                f"features of {self.cache.folder} were made, and can be now; delete that folder"
            )
