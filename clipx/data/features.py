"""Batches of cached features instead of pictures and words, for heads on locked trunks."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from clipx.data.feature_cache import FeatureCache
from clipx.data.loader import DataConfig, Loaded, fingerprint
from clipx.data.order import batch_positions, uniforms
from clipx.data.stream import BadSample
from clipx.data.transforms import Augmentation
from clipx.types import UserError


def augmentation_faults(config: DataConfig) -> list[str]:
    """Why this corpus cannot be cached: a random view of a picture has no one feature."""
    if not Augmentation(config.crop_scale, config.crop_ratio, config.flip).is_random:
        return []
    return [
        "cache_features needs pictures without random augmentation: "
        "set data.crop_scale: [1, 1], data.crop_ratio: [1, 1] and data.flip: 0"
    ]


class FeatureBatches(Dataset):
    """What `Batches` would load, as the trunks see it: the same samples, captions, order and
    fingerprints. `image` and `text` are (B, ...) float32 features."""

    def __init__(
        self, cache: FeatureCache, *, global_batch_size: int, rank: int, world_size: int
    ) -> None:
        assert cache.complete, "the caller builds it"
        self.cache, self.corpus, self.config = cache, cache.corpus, cache.config
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.texts = cache.texts()
        sizes = self.corpus.order.sizes
        self.shard_start = np.cumsum(sizes) - sizes

    def __getitem__(self, index: int) -> Loaded | UserError:
        try:
            return self._batch(index)
        except UserError as error:
            return error

    def _batch(self, k: int) -> Loaded:
        size = self.global_batch_size
        positions = batch_positions(k, size, rank=self.rank, world_size=self.world_size)
        located = self.corpus.order.locate(positions)
        shard, sample, bad = located.shard, located.sample, []
        for row in np.flatnonzero(~self._usable(shard, sample)):
            shard[row], sample[row], faults = self._replacement(
                int(positions[row]), int(shard[row]), int(sample[row])
            )
            bad += faults
        draws = uniforms(self.corpus.order.seed, positions[:, None], 1)[:, 0]
        text = self.texts.draw(self.shard_start[shard] + sample, draws)
        keys = [self.corpus.shards[s].keys[i] for s, i in zip(shard, sample, strict=True)]
        return Loaded(
            image=self.cache.read_images(shard, sample),
            text=self.cache.read_texts(text),
            keys=keys,
            positions=positions.tolist(),
            state={"position": (k + 1) * size},
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )

    def _usable(self, shard: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """True where the sample was good when the features were made."""
        place = self.shard_start[shard] + sample
        return self.texts.first[place + 1] > self.texts.first[place]

    def _replacement(
        self, position: int, shard: int, sample: int
    ) -> tuple[int, int, list[BadSample]]:
        """(shard, sample) that stands in for a bad one, and what was bad: as `Batches` finds it."""
        _, key, bad = self.corpus.usable(position, shard, sample, self.cache.pixels)
        if bad:
            shard, sample = self.corpus.order.replacement(position, len(bad))
        if not self._usable(np.array([shard]), np.array([sample]))[0]:
            raise UserError(
                f"sample {key} of {self.corpus.shards[shard].path} could not be read when the "
                f"features of {self.cache.folder} were made, and can be now; delete that folder"
            )
        return shard, sample, bad
