"""What locked towers make of a corpus, computed once: training then reads features instead of
pictures and words (LiT, arXiv:2111.07991).

folder/
    images-00003.npy     features of the pictures of shard 3, (samples, ...) float16
    captions-00003.json  their captions; none of a sample that cannot be used
    texts-00000.npy      features of the corpus's first distinct captions, (texts, ...) float16
    meta.json            what the files were made from; written last

Every file is written beside and renamed, and is there or not: a build that was stopped goes on with
what is missing, and several ranks build different files. Names of files depend on nothing but the
corpus, so the folder must: it belongs to one digest of corpus, trunks and preprocessing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.data import decode
from clipx.data.loader import DataConfig
from clipx.data.sources.progress import progress
from clipx.data.stream import Corpus, Sample, SampleError
from clipx.data.tokenizers import Tokenizer, pad
from clipx.data.transforms import center
from clipx.types import UserError

IMAGES_AT_ONCE = 32  # more are no faster on a CPU: their activations leave its cache
TEXTS_AT_ONCE = 256
TEXTS_PER_FILE = 8192


@dataclass(frozen=True)
class Trunks:
    """The locked halves of both towers.

    image: (B, 3, H, W) uint8 -> (B, ...) features; text: (B, T) int64 -> (B, ...) features
    digest: of their weights and of everything else that their features depend on
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    image_size: int
    tokenizer: Tokenizer
    context_length: int
    pad_to: int | None
    digest: str


class FeatureCache:
    """The features of one corpus by one pair of trunks, below `root`."""

    def __init__(self, root: Path, corpus: Corpus, trunks: Trunks, config: DataConfig) -> None:
        told = [corpus.digest, trunks.digest, corpus.caption_field, config.max_image_pixels]
        self.digest = hashlib.sha1(repr(told).encode()).hexdigest()
        self.folder = root / self.digest[:16]
        self.corpus, self.trunks, self.config = corpus, trunks, config

    @property
    def complete(self) -> bool:
        return (self.folder / "meta.json").exists()

    def build_images(self, *, rank: int, world_size: int) -> None:
        """This rank's shards: features of their pictures, and their captions. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shards = range(rank, len(self.corpus.shards), world_size)
        missing = [s for s in shards if not self._captions(s).exists()]
        total = sum(len(self.corpus.shards[s]) for s in missing)
        with progress("image features", total) as advance, one_core_each() as pool:
            for shard in missing:
                self._build_shard(shard, pool, advance)

    def _build_shard(self, shard: int, pool: Executor, advance: Callable[[], None]) -> None:
        count = len(self.corpus.shards[shard])
        parts = [
            range(first, min(first + IMAGES_AT_ONCE, count))
            for first in range(0, count, IMAGES_AT_ONCE)
        ]
        rows: list[np.ndarray] = []
        captions: list[list[str]] = []
        for features, texts in pool.map(lambda samples: self._images_of(shard, samples), parts):
            rows.append(features)
            captions += texts
            for _ in texts:
                advance()
        _save(self._images(shard), np.concatenate(rows))
        _write(self._captions(shard), json.dumps(captions).encode())

    def _images_of(self, shard: int, samples: range) -> tuple[np.ndarray, list[list[str]]]:
        """Features and captions of some samples. One that cannot be used has no captions: training
        will ask for it, and get its replacement."""
        pixels = torch.zeros((len(samples), 3, *[self.trunks.image_size] * 2), dtype=torch.uint8)
        captions: list[list[str]] = []
        for row, number in enumerate(samples):
            try:
                sample = self.corpus.read(shard, number)
                pixels[row] = self.pixels(sample)
                captions.append(sample.captions)
            except (SampleError, decode.BadImage, OSError):
                captions.append([])
        return _float16(self.trunks.image(pixels)), captions

    def pixels(self, sample: Sample) -> Tensor:
        """(3, image_size, image_size) uint8. Raises BadImage."""
        pixels = decode.decode(sample.image, max_pixels=self.config.max_image_pixels)
        return center(pixels, self.trunks.image_size)

    def build_texts(self, *, rank: int, world_size: int) -> None:
        """This rank's part of the distinct captions, once all ranks have built their images. Raises
        OSError."""
        texts = self.texts().distinct
        files = range(rank, -(-len(texts) // TEXTS_PER_FILE), world_size)
        parts = {
            file: texts[file * TEXTS_PER_FILE : (file + 1) * TEXTS_PER_FILE]
            for file in files
            if not self._texts(file).exists()
        }
        with progress("text features", sum(map(len, parts.values()))) as advance:
            with one_core_each() as pool:
                for file, part in parts.items():
                    _save(self._texts(file), self._encode(part, pool, advance))

    def _encode(self, texts: list[str], pool: Executor, advance: Callable[[], None]) -> np.ndarray:
        """Captions of like length together, so that little of the work is padding."""
        ids = [self.trunks.tokenizer.encode(t, self.trunks.context_length) for t in texts]
        order = np.argsort([len(i) for i in ids], kind="stable")
        parts = [
            [ids[i] for i in order[first : first + TEXTS_AT_ONCE]]
            for first in range(0, len(ids), TEXTS_AT_ONCE)
        ]
        rows = []
        for part, features in zip(parts, pool.map(self._texts_of, parts), strict=True):
            rows.append(features)
            for _ in part:
                advance()
        return np.concatenate(rows)[np.argsort(order)]

    def _texts_of(self, ids: list[list[int]]) -> np.ndarray:
        return _float16(
            self.trunks.text(pad(ids, self.trunks.tokenizer.pad_id, self.trunks.pad_to))
        )

    def finish(self) -> None:
        """Once all ranks have built their texts. Raises OSError."""
        meta = {"digest": self.digest, "samples": self.corpus.num_samples}
        _write(self.folder / "meta.json", json.dumps(meta, indent=2).encode())

    def texts(self) -> Texts:
        """The captions of the whole corpus."""
        shards = range(len(self.corpus.shards))
        return Texts.of(c for s in shards for c in json.loads(self._captions(s).read_bytes()))

    def read_images(self, shard: np.ndarray, sample: np.ndarray) -> Tensor:
        """(B, ...) float32 features of these samples."""
        return _gather(self._images, shard, sample)

    def read_texts(self, text: np.ndarray) -> Tensor:
        """(B, ...) float32 features of these distinct captions."""
        return _gather(self._texts, text // TEXTS_PER_FILE, text % TEXTS_PER_FILE)

    def _images(self, shard: int) -> Path:
        return self.folder / f"images-{shard:05d}.npy"

    def _captions(self, shard: int) -> Path:
        return self.folder / f"captions-{shard:05d}.json"

    def _texts(self, file: int) -> Path:
        return self.folder / f"texts-{file:05d}.npy"


@dataclass(frozen=True)
class Texts:
    """The captions of N samples, each different one once.

    ids: places in `distinct` of the captions of all samples, end to end
    first: (N + 1,) where in `ids` those of a sample begin
    """

    distinct: list[str]
    ids: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, captions: Iterable[list[str]]) -> Texts:
        place: dict[str, int] = {}
        ids: list[int] = []
        first = [0]
        for texts in captions:
            ids += [place.setdefault(text, len(place)) for text in texts]
            first.append(len(ids))
        return cls(list(place), np.array(ids, dtype=np.int64), np.array(first, dtype=np.int64))

    def draw(self, sample: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Places in `distinct` of one caption of each sample.

        sample: (B,) place among all samples; draws: (B,) in [0, 1)
        """
        count = self.first[sample + 1] - self.first[sample]
        return self.ids[self.first[sample] + (draws * count).astype(np.int64)]


@contextmanager
def one_core_each() -> Iterator[Executor]:
    """Threads, as many as torch uses, in each of which it uses one.

    Sharing every layer of a small trunk, cores wait for one another hundreds of times a batch: on
    two busy cores that took ten times as long as each working through its own samples.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _gather(path: Callable[[int], Path], file: np.ndarray, row: np.ndarray) -> Tensor:
    """(B, ...) float32: row `row[i]` of the array in `path(file[i])`."""
    parts = [
        (here := np.flatnonzero(file == f), _mapped(path(f))[row[here]]) for f in np.unique(file)
    ]
    out = np.empty((len(file), *parts[0][1].shape[1:]), dtype=np.float32)
    for here, values in parts:
        out[here] = values
    return torch.from_numpy(out)


@lru_cache(maxsize=512)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _float16(features: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # told below
        out = features.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(out).all():
        raise UserError("a trunk's features exceed float16; train without cache_features")
    return out


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whatever process writes beside or is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
