"""Order + samples + decoding + augmentation + tokens -> batches, by worker processes that hold no
state.

Batch k of rank r is a function of (seed, k, r, R) alone: a worker that is asked for it twice, or a
run that starts there, builds the same bytes. So resuming is starting the list of batch numbers
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from torch.utils.data import DataLoader, Dataset

from clipx.config import config
from clipx.data import decode
from clipx.data.order import batch_positions, hash_of, uniforms
from clipx.data.stream import BadSample, Corpus, Sample, key_hash, open_shards
from clipx.data.tokenizers import Tokenizer, pad
from clipx.data.transforms import NUM_DRAWS, Augmentation, augment
from clipx.types import Batch, RankError, UserError

_FINGERPRINT_MASK = (1 << 63) - 1
Share = Annotated[float, Field(gt=0, le=1)]


@config
class DataConfig:
    """Where pairs come from and how they are read."""

    shards: str | list[str]
    """Folder, glob, `{000..127}` range, list, or several of them joined by `::`."""
    workers: int = Field(default=1, ge=0)
    """Processes per rank that read and decode; 0 reads in the training process. Never changes the
    batches."""
    streams: int = Field(default=64, ge=1)
    """Places of the corpus that every batch draws from. Part of the order: choose a multiple of the
    ranks."""
    window: int = Field(default=20_000, ge=1)
    """Samples that are shuffled together within a stream."""
    caption_field: str = "captions"
    """Field of the `.json` member with one caption or a list, of which each visit draws one; else
    `.txt` is read."""
    crop_scale: tuple[Share, Share] = (0.9, 1.0)
    """Share of the image's area that a random crop keeps."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width over height of a random crop."""
    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip."""
    max_image_pixels: int = decode.MAX_PIXELS
    """Larger images are quarantined unread."""
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    """Training stops when a larger share of samples is bad (looked at from 500 samples on)."""

    def open(self, *, seed: int) -> Corpus:
        """Raises UserError when no shard, or none with samples, is found."""
        shards = list(open_shards(self.shards))
        filled = [shard for shard in shards if len(shard)]
        if not filled:
            raise UserError(f"all {len(shards)} shards of {self.shards!r} are empty")
        return Corpus(
            filled,
            seed=seed,
            streams=self.streams,
            window=self.window,
            caption_field=self.caption_field,
        )


@dataclass(frozen=True)
class Loaded(Batch):
    """A batch with what its samples tell of themselves.

    fingerprint: sum over samples of a hash of (position, key), mod 2^63; sums over ranks and steps
    are order-free
    """

    fingerprint: int = 0
    bad: list[BadSample] = field(default_factory=list)

    def pin_memory(self) -> Loaded:
        return replace(self, image=self.image.pin_memory(), text=self.text.pin_memory())


def fingerprint(positions: np.ndarray, keys: list[str]) -> int:
    """Of the samples read at these positions; fingerprints of disjoint parts add up."""
    hashes = hash_of(positions, np.array([key_hash(key) for key in keys], dtype=np.uint64))
    return int(hashes.sum(dtype=np.uint64)) & _FINGERPRINT_MASK


class Batches(Dataset):
    """`batches[k]` is this rank's part of global batch k, or the UserError that reading it met."""

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        context_length: int,
        pad_to: int | None,
        global_batch_size: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.config, self.corpus, self.tokenizer = config, corpus, tokenizer
        self.image_size, self.context_length, self.pad_to = image_size, context_length, pad_to
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.augmentation = Augmentation(config.crop_scale, config.crop_ratio, config.flip)

    def __getitem__(self, index: int) -> Loaded | UserError:
        # A UserError is returned, not raised: torch would bury its message under the worker's
        # traceback.
        try:
            return self._batch(index)
        except UserError as error:
            return error

    def _batch(self, k: int) -> Loaded:
        size = self.global_batch_size
        positions = batch_positions(k, size, rank=self.rank, world_size=self.world_size)
        located = self.corpus.order.locate(positions)
        draws = uniforms(self.corpus.order.seed, positions[:, None], 1 + NUM_DRAWS)
        image = torch.empty(
            (len(positions), 3, self.image_size, self.image_size), dtype=torch.uint8
        )
        texts, keys, bad = [], [], []
        rows = zip(positions.tolist(), located.shard.tolist(), located.sample.tolist(), strict=True)
        for row, (position, shard, sample) in enumerate(rows):
            ids, key, faults = self.corpus.usable(
                position, shard, sample, lambda s, row=row: self._prepare(s, draws[row], image[row])
            )
            texts.append(ids)
            keys.append(key)
            bad += faults
        return Loaded(
            image=image,
            text=pad(texts, self.tokenizer.pad_id, self.pad_to),
            keys=keys,
            positions=positions.tolist(),
            state={"position": (k + 1) * size},
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )

    def _prepare(self, sample: Sample, draws: np.ndarray, out: torch.Tensor) -> list[int]:
        """Token ids; the image is written to `out`. Raises BadImage."""
        caption = sample.captions[int(draws[0] * len(sample.captions))]
        pixels = decode.decode(sample.image, max_pixels=self.config.max_image_pixels)
        augment(pixels, self.image_size, self.augmentation, draws[1:], out=out)
        return self.tokenizer.encode(caption, self.context_length)


class Source(Protocol):
    """Batches by their number: of pixels, or of features that locked towers made of them."""

    config: DataConfig

    def __getitem__(self, index: int) -> Loaded | UserError: ...


def load(batches: Source, first: int, stop: int) -> Iterator[Loaded]:
    """This rank's parts of the global batches first ... stop - 1, in order. Raises UserError."""
    workers = batches.config.workers
    loader = DataLoader(
        batches,  # type: ignore[arg-type] torch asks for no more than __getitem__
        batch_size=None,
        sampler=range(first, stop),
        generator=torch.Generator(),  # or each start would take a number from the model's
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    seen = num_bad = 0
    for item in loader:
        if isinstance(item, UserError):
            raise RankError(str(item))
        seen, num_bad = seen + len(item.keys), num_bad + len(item.bad)
        if seen >= 500 and num_bad > batches.config.max_bad_fraction * seen:
            last = item.bad[-1] if item.bad else None
            raise RankError(
                f"{num_bad} of {seen} samples are bad, more than data.max_bad_fraction="
                f"{batches.config.max_bad_fraction}; see quarantine.jsonl"
                + (f"; the last: {last.key} of {last.shard}: {last.message}" if last else "")
            )
        yield item
