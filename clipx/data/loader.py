"""Order + samples + decoding + augmentation + tokens -> batches, by worker processes that hold no
state.

Batch k of rank r is a function of (seed, k, r, R) alone: a worker that is asked for it twice, or a
run that starts there, builds the same bytes. So resuming is starting the list of batch numbers
elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clipx.data.config import DataConfig
from clipx.data.order import batch_positions, hash_of, uniforms
from clipx.data.sample import BadSample
from clipx.data.stream import Corpus, Sample
from clipx.data.tokenizers import Tokenizer, pad
from clipx.data.transforms import NUM_DRAWS, augment, center
from clipx.types import Batch, RankError, UserError

_LAST_SECONDS = 120  # a worker lives for after a stranger's SIGTERM, if its parent does not end it
_FINGERPRINT_MASK = (1 << 63) - 1
MIN_SEEN = 500
"""Samples before the share of bad ones is looked at: a small start proves nothing."""


@dataclass(frozen=True)
class Loaded(Batch):
    """A batch with what its samples tell of themselves.

    fingerprint: sum over samples of a hash of (position, key), mod 2^63; sums over ranks and steps
    are order-free
    """

    fingerprint: int = 0
    bad: list[BadSample] = field(default_factory=list)

    def pin_memory(self) -> Loaded:
        return replace(self, views={name: view.pin_memory() for name, view in self.views.items()})


def fingerprint(positions: np.ndarray, keys: list[str]) -> int:
    """Of the samples read at these positions; fingerprints of disjoint parts add up."""
    hashes = hash_of(positions, np.array([key_hash(key) for key in keys], dtype=np.uint64))
    return int(hashes.sum(dtype=np.uint64)) & _FINGERPRINT_MASK


def key_hash(key: str) -> int:
    """63-bit hash of a sample key, the same in every process."""
    digest = hashlib.sha1(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Batches:
    """`batches[k]` is this rank's part of global batch k. Raises UserError."""

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
        fit: Callable[[torch.Tensor, int], torch.Tensor] = center,
    ) -> None:
        """fit: brings an image to `image_size` where no crop is random; see Preprocessing.fit"""
        self.config, self.corpus, self.tokenizer = config, corpus, tokenizer
        self.image_size, self.context_length, self.pad_to = image_size, context_length, pad_to
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self._augmentation = config.augmentation
        self._fit = fit
        self._prefetched = -1

    def __getitem__(self, index: int) -> Loaded:
        self._prefetch(index)
        positions = self.positions(index)
        located = self.corpus.locate(positions)
        draws = uniforms(self.corpus.order.seed, positions[:, None], 1 + NUM_DRAWS)
        image = torch.empty(
            (len(positions), 3, self.image_size, self.image_size), dtype=torch.uint8
        )
        texts, keys, bad = [], [], []
        rows = zip(positions.tolist(), located.shard.tolist(), located.sample.tolist(), strict=True)
        for row, (position, shard, sample) in enumerate(rows):
            used = self.corpus.usable(
                position, shard, sample, lambda s, row=row: self._prepare(s, draws[row], image[row])
            )
            texts.append(used.value)
            keys.append(used.key)
            bad += used.bad
        return Loaded(
            views={"image": image, "text": self.pad(texts)},
            keys=keys,
            positions=positions.tolist(),
            state={"position": (index + 1) * self.global_batch_size},
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )

    def positions(self, k: int) -> np.ndarray:
        """(B,) of this rank's part of global batch k."""
        size = self.global_batch_size
        return batch_positions(k, size, rank=self.rank, world_size=self.world_size)

    def pad(self, texts: list[list[int]]) -> torch.Tensor:
        """(B, T) int64"""
        return pad(
            texts,
            self.tokenizer.pad_id,
            self.pad_to,
            multiple=self.config.text_multiple,
            context_length=self.context_length,
        )

    def _prefetch(self, k: int) -> None:
        """Asks for remote shards of the batches up to a quarter of a window from here."""
        if not self.corpus.is_remote:
            return
        ahead = self.config.streams * self.config.window // (4 * self.global_batch_size)
        last = k + max(8, ahead)
        first = max(k, self._prefetched + 1)
        self._prefetched = max(last, self._prefetched)
        if first <= last:
            positions = [self.positions(batch) for batch in range(first, last + 1)]
            self.corpus.prefetch(np.concatenate(positions))

    def _prepare(self, sample: Sample, draws: np.ndarray, out: torch.Tensor) -> list[int]:
        """Token ids; the image is written to `out`. Raises BadImage."""
        pixels = self.config.decode(sample.image)
        augment(pixels, self.image_size, self._augmentation, draws[1:], out=out, fit=self._fit)
        return self.tokenizer.encode(sample.caption.draw(draws[0]), self.context_length)


class Source(Protocol):
    """Batches by their number: of pixels, or of features that locked towers made of them."""

    config: DataConfig

    def __getitem__(self, index: int) -> Loaded: ...


class _Guarded(Dataset):
    """A UserError is returned, not raised: torch would bury its message under the worker's
    traceback."""

    def __init__(self, batches: Source) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Loaded | UserError:
        try:
            return self.batches[index]
        except UserError as error:
            return error


def load(batches: Source, first: int, stop: int) -> Iterator[Loaded]:
    """This rank's parts of the global batches first ... stop - 1, in order. Raises UserError."""
    limit = batches.config.max_bad_fraction
    seen = num_bad = 0
    for item in _from_workers(batches, first, stop):
        if isinstance(item, UserError):
            raise RankError(str(item))
        yield item  # first, so that what is bad in it is written down
        seen, num_bad = seen + len(item.keys), num_bad + len(item.bad)
        if seen >= MIN_SEEN and num_bad > limit * seen:
            last = item.bad[-1] if item.bad else None
            raise RankError(
                f"{num_bad} of {seen} samples are bad, more than data.max_bad_fraction={limit}; "
                "see quarantine.jsonl"
                + (f"; the last: {last.key} of {last.shard}: {last.message}" if last else "")
            )


def _from_workers(batches: Source, first: int, stop: int) -> Iterator[Loaded | UserError]:
    workers = batches.config.workers
    loader = DataLoader(
        _Guarded(batches),
        batch_size=None,
        sampler=range(first, stop),
        generator=torch.Generator(),  # or each start would take a number from the model's
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
    )
    try:
        yield from _start(loader)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise RankError(
            f"a data worker was ended from outside, most often for want of memory: {error}; "
            f"lower data.workers={workers}, or give the job more memory"
        ) from error


def _outlive_signals(worker: int) -> None:
    """In a worker: its parent needs the batches of one more step when a whole job is told to end.
    Torch's own handler would die of any SIGTERM that is not the parent's; who sent it only
    `sigwaitinfo` tells, which macOS lacks."""
    if sys.platform == "linux":
        # Blocked in this thread, and so in all that it starts: the signal waits for who takes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            signal.alarm(_LAST_SECONDS)
        os._exit(0)


def _start(loader: DataLoader) -> Iterator[Loaded | UserError]:
    """With the handler of SIGCHLD as it was. Torch's raises a worker's death wherever training
    happens to be; without it, who waits for a batch looks for the workers every 5 seconds."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return batches
