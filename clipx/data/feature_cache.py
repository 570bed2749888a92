"""Features of locked towers: training reads them instead of pictures and words (LiT,
arXiv:2111.07991).

folder/
    images-00003.npy     features of the pictures of shard 3, (samples, ...) float16
    captions-00003.json  their captions; none for a sample that cannot be used
    texts-00000.npy      features of the corpus's first distinct captions, (texts, ...) float16
    meta.json            what the files were made from; written last

Every file is atomic, so a build that was stopped continues with the missing files, and ranks build
different ones. Parts of a file that is being built, such as `images-00003.part-00000.npz`, are
removed once it is complete. The folder's name is a digest of the corpus, the trunks and their
inputs, so features of anything else are never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus, Sample
from clipx.data.loader import Loaded, fingerprint
from clipx.data.order import batch_positions, uniforms
from clipx.data.tokenizers import Tokenizer
from clipx.files import write_whole
from clipx.types import UserError

TEXTS_PER_FILE = 8192


@dataclass(frozen=True)
class Trunks:
    """The locked parts of both towers.

    image: (B, 3, H, W) uint8 -> (B, ...) features; text: (B, T) int64 -> (B, ...) features
    fit: (3, H, W) uint8 -> (3, image_size, image_size) uint8
    digest: of their weights and of everything else that their features depend on
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    fit: Callable[[Tensor], Tensor]
    image_size: int
    tokenizer: Tokenizer
    context_length: int
    pad_to: int | None
    digest: str


class FeatureCache:
    """The features of one corpus by one pair of trunks, below `root`."""

    def __init__(self, root: Path, corpus: Corpus, trunks: Trunks, config: DataConfig) -> None:
        # Everything that changes a feature or a caption; the order of samples does not.
        inputs = [corpus.digest, trunks.digest, config.caption_field, config.max_image_pixels]
        # Caches from before this setting are of pixels as stored, and keep their name.
        inputs += ["exif_orientation"] if config.exif_orientation else []
        self.digest = hashlib.sha1(repr(inputs).encode()).hexdigest()
        self.folder = root / self.digest[:16]
        self.corpus = corpus
        self.trunks = trunks
        self.config = config

    @property
    def complete(self) -> bool:
        return (self.folder / "meta.json").exists()

    def finish(self) -> None:
        """Mark the cache complete, after all ranks have built all files. Raises OSError."""
        meta = {"digest": self.digest, "samples": self.corpus.num_samples}
        write_whole(self.folder / "meta.json", json.dumps(meta, indent=2))

    def image_file(self, shard: int) -> Path:
        return self.folder / f"images-{shard:05d}.npy"

    def caption_file(self, shard: int) -> Path:
        return self.folder / f"captions-{shard:05d}.json"

    def text_file(self, number: int) -> Path:
        return self.folder / f"texts-{number:05d}.npy"

    def pixels(self, sample: Sample) -> Tensor:
        """(3, image_size, image_size) uint8. Raises BadImage."""
        return self.trunks.fit(self.config.pixels(sample.images[0]))

    def texts(self) -> Texts:
        """The captions of the whole corpus, after all images are built."""
        place: dict[str, int] = {}  # of each distinct caption
        ids = []
        first = [0]
        for shard in range(self.corpus.num_shards):
            for captions in json.loads(self.caption_file(shard).read_bytes()):
                for text in captions:
                    ids.append(place.setdefault(text, len(place)))
                first.append(len(ids))
        return Texts(list(place), np.array(ids, dtype=np.int64), np.array(first, dtype=np.int64))


@dataclass(frozen=True)
class Texts:
    """The captions of N samples, equal ones stored once.

    ids: places in `distinct` of the captions of all samples, end to end
    first: (N + 1,) where in `ids` those of a sample begin
    """

    distinct: list[str]
    ids: np.ndarray
    first: np.ndarray


class FeatureBatches:
    """The batches of `Batches` after the trunks: the same samples, captions, order and
    fingerprints. Their views `image` and `text` are (B, ...) float32 features."""

    def __init__(
        self, cache: FeatureCache, *, global_batch_size: int, rank: int, world_size: int
    ) -> None:
        assert cache.complete
        self.cache = cache
        self.corpus = cache.corpus
        self.config = cache.config
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.texts = cache.texts()
        self.num_captions = np.diff(self.texts.first)  # of each sample of the corpus

    def __getitem__(self, index: int) -> Loaded:
        size = self.global_batch_size
        positions = batch_positions(index, size, rank=self.rank, world_size=self.world_size)
        located = self.corpus.locate(positions)
        shard = located.shard.copy()
        sample = located.sample.copy()
        place = self.corpus.first_sample[shard] + sample  # among all samples of the corpus

        # A sample without captions was bad when the features were made.
        bad = []
        for row in np.flatnonzero(self.num_captions[place] == 0):
            # The replacement is a function of the position, as without the cache.
            used = self.corpus.usable(
                int(positions[row]), int(shard[row]), int(sample[row]), self.cache.pixels
            )
            shard[row] = used.shard
            sample[row] = used.sample
            place[row] = self.corpus.first_sample[used.shard] + used.sample
            bad += used.bad
            if self.num_captions[place[row]] == 0:
                raise UserError(
                    f"sample {used.key} of {self.corpus.name(used.shard)} could not be read when "
                    f"the features of {self.cache.folder} were made, and can be now; "
                    "delete that folder"
                )

        # The draw of `Batches` for this position, so that both choose the same caption.
        draws = uniforms(self.corpus.order.seed, positions[:, None], 1)[:, 0]
        caption = (draws * self.num_captions[place]).astype(np.int64)
        text = self.texts.ids[self.texts.first[place] + caption]
        text_file = text // TEXTS_PER_FILE
        keys = []
        for shard_of_row, sample_of_row in zip(shard.tolist(), sample.tolist(), strict=True):
            keys.append(self.corpus.key(shard_of_row, sample_of_row))
        return Loaded(
            views={
                "image": _gather(self.cache.image_file, shard, sample),
                "text": _gather(self.cache.text_file, text_file, text % TEXTS_PER_FILE),
            },
            keys=keys,
            positions=positions.tolist(),
            state={"position": (index + 1) * size},
            samples=place.tolist(),
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )


def augmentation_faults(config: DataConfig) -> list[str]:
    """Reasons why the features of this corpus cannot be cached."""
    faults = []
    if config.augmentation.is_random:  # each view of a picture has other features
        faults.append(
            "cache_features needs pictures without random augmentation: "
            "set data.crop: false, and no flip, jitter, gray scale, RandAugment, blur or erasing"
        )
    if not isinstance(config.caption_field, str):
        faults.append("cache_features draws all captions alike: give one data.caption_field")
    return faults


def _gather(path: Callable[[int], Path], file: np.ndarray, row: np.ndarray) -> Tensor:
    """(B, ...) float32: row `row[i]` of the array in `path(file[i])`."""
    features = None
    for number in np.unique(file):  # one read for all rows of a file
        here = np.flatnonzero(file == number)
        values = _open_array(path(number))[row[here]]
        if features is None:  # the shape of a row is known from the first file
            features = np.empty((len(file), *values.shape[1:]), dtype=np.float32)
        features[here] = values
    return torch.from_numpy(features)


@lru_cache(maxsize=512)
def _open_array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
