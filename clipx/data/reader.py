"""Samples with decoded pictures, from a corpus or from memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from clipx.data.augment import NUM_DRAWS, Augmentation, shrink_of
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus, Sample, Used
from clipx.data.decoded_cache import DecodedCache, digest_of
from clipx.types import UserError

MAX_REMEMBERED = 1 << 18  # samples, about 700 bytes each
T = TypeVar("T")
Prepare = Callable[[Sequence[Tensor], Sample], T]
"""(3, H, W) uint8 of each picture, and the sample -> what a batch needs of them"""


class Reader:
    """Reads the samples of a corpus and decodes their pictures.

    image_size: of the model, to which pictures are resized; augmentations: of their views
    """

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        image_size: int,
        augmentations: Sequence[Augmentation],
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.image_size = image_size
        self.augmentations = augmentations

    def use(
        self, position: int, shard: int, sample: int, draws: np.ndarray, prepare: Prepare[T]
    ) -> Used[T]:
        """Call `prepare` with the sample, or with the position's first replacement that is good.

        draws: of the augmentations, NUM_DRAWS each. Raises UserError, see `Corpus.usable`.
        """

        def decode_and_prepare(found: Sample) -> T:
            return prepare(self.decode(found.images, draws), found)

        return self.corpus.usable(position, shard, sample, decode_and_prepare)

    def decode(self, images: Sequence[bytes], draws: np.ndarray) -> list[Tensor]:
        """(3, H, W) uint8 of each picture of a sample: one for all views, or one for each view.
        Raises BadImage."""
        if self.config.decode == "exact":
            return [self.config.pixels(image) for image in images]
        pixels = []
        for number, image in enumerate(images):
            views = range(len(self.augmentations)) if len(images) == 1 else [number]
            pixels.append(self.config.pixels(image, shrink=partial(self._shrink, views, draws)))
        return pixels

    def _shrink(self, views: Iterable[int], draws: np.ndarray, height: int, width: int) -> int:
        """How many times smaller a picture may be decoded for all of these views."""
        of_views = []
        for view in views:
            of_view = draws[view * NUM_DRAWS :]
            augmentation = self.augmentations[view]
            of_views.append(shrink_of(height, width, self.image_size, augmentation, of_view))
        return min(of_views)


@dataclass(frozen=True)
class _Remembered:
    sample: Sample  # without its pictures
    digests: tuple[bytes, ...]  # of the encoded pictures, by which the cache finds their pixels


class CachedReader(Reader):
    """Decodes each picture once (`DecodedCache`), and reads a sample that this process has used
    before from memory instead of its shard.

    Only good samples are remembered, so that bad ones are found and replaced in each epoch.
    """

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        image_size: int,
        augmentations: Sequence[Augmentation],
        folder: Path,
    ) -> None:
        super().__init__(config, corpus, image_size, augmentations)
        self.cache = DecodedCache(
            folder,
            corpus.num_samples,
            max_pixels=config.max_image_pixels,
            max_bytes=config.max_image_bytes,
            exif_orientation=config.exif_orientation,
        )
        self._remembered: dict[tuple[int, int], _Remembered] = {}

    def use(
        self, position: int, shard: int, sample: int, draws: np.ndarray, prepare: Prepare[T]
    ) -> Used[T]:
        known = self._remembered.get((shard, sample))
        if known is not None:
            cached = [self.cache.read(digest) for digest in known.digests]
            pixels = [picture for picture in cached if picture is not None]
            if len(pixels) == len(cached):  # else the cache's files are gone
                return Used(prepare(pixels, known.sample), known.sample.key, shard, sample)

        def decode_and_prepare(found: Sample) -> tuple[T, _Remembered]:
            value = prepare(self.decode(found.images, draws), found)
            digests = tuple(map(digest_of, found.images))
            return value, _Remembered(replace(found, images=()), digests)

        used = self.corpus.usable(position, shard, sample, decode_and_prepare)
        value, found = used.value
        is_itself = (used.shard, used.sample) == (shard, sample) and not used.bad
        if is_itself and len(self._remembered) < MAX_REMEMBERED:
            self._remembered[shard, sample] = found
        return Used(value, used.key, used.shard, used.sample, used.bad)

    def decode(self, images: Sequence[bytes], draws: np.ndarray) -> list[Tensor]:
        return [self.cache.decode(image) for image in images]


def build_reader(
    config: DataConfig, corpus: Corpus, image_size: int, augmentations: Sequence[Augmentation]
) -> Reader:
    """Raises UserError."""
    if config.decoded_cache is None:
        return Reader(config, corpus, image_size, augmentations)
    if config.decode != "exact":
        raise UserError(
            f"data.decode {config.decode} gives a picture other pixels at each visit, and "
            "data.decoded_cache keeps them for all; leave one of the two out"
        )
    folder = Path(config.decoded_cache)
    return CachedReader(config, corpus, image_size, augmentations, folder)
