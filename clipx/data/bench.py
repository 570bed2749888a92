"""Where the time of loading goes: samples per second of each stage, and of all workers together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from clipx.data.decode import BadImage
from clipx.data.loader import Batches, load
from clipx.data.order import uniforms
from clipx.data.sample import SampleError
from clipx.data.transforms import NUM_DRAWS, augment

STAGES = ("read", "decode", "augment", "tokenize", "collate")


@dataclass(frozen=True)
class Report:
    """seconds: of one worker on one core for a sample, by stage
    samples_per_second: of the loader with its workers, measured whole; 0 workers are the training
    process itself
    """

    seconds: dict[str, float]
    samples: int
    workers: int
    samples_per_second: float

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


def bench(batches: Batches, *, seconds: float) -> Report:
    """Half of the time for the stages one by one, half for the loader. Raises UserError."""
    samples, stages = _stages(batches, seconds / 2)
    workers = batches.config.workers
    return Report(stages, samples, workers, _whole(batches, seconds / 2))


def _stages(batches: Batches, limit: float) -> tuple[int, dict[str, float]]:
    """(samples, seconds of a sample by stage)"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    clock = dict.fromkeys(STAGES, 0.0)
    samples = 0
    try:
        _batch(batches, 0, dict.fromkeys(STAGES, 0.0))  # opens files, fills caches
        began, k = time.perf_counter(), 1
        while time.perf_counter() - began < limit:
            samples += _batch(batches, k, clock)
            k += 1
    finally:
        torch.set_num_threads(threads)
    return samples, {stage: total / samples for stage, total in clock.items()}


def _batch(batches: Batches, k: int, clock: dict[str, float]) -> int:
    """Does what `batches[k]` does, stage by stage. Returns the number of good samples."""
    corpus, config, size = batches.corpus, batches.config, batches.image_size
    positions = batches.positions(k)
    with _timed(clock, "read"):
        located = corpus.locate(positions)
    draws = uniforms(corpus.order.seed, positions[:, None], 1 + NUM_DRAWS)
    with _timed(clock, "collate"):
        image = torch.empty((len(positions), 3, size, size), dtype=torch.uint8)
    texts = []
    rows = zip(draws, image, located.shard.tolist(), located.sample.tolist(), strict=True)
    for numbers, out, shard, sample in rows:
        try:
            with _timed(clock, "read"):
                found = corpus.read(shard, sample)
            with _timed(clock, "decode"):
                pixels = config.decode(found.image)
        except (SampleError, BadImage, OSError):
            continue  # `clipx data verify` tells of it; here the time of good ones counts
        with _timed(clock, "augment"):
            augment(pixels, size, config.augmentation, numbers[1:], out=out)
        with _timed(clock, "tokenize"):
            text = found.caption.draw(numbers[0])
            texts.append(batches.tokenizer.encode(text, batches.context_length))
    with _timed(clock, "collate"):
        batches.pad(texts)
    return len(texts)


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] += time.perf_counter() - began


def _whole(batches: Batches, limit: float) -> float:
    """Samples per second of the loader, once its workers run."""
    began, samples = None, 0
    for batch in load(batches, 0, 1_000_000_000):
        if began is None:  # after the first batch: starting processes is not loading
            began = time.perf_counter()
            continue
        samples += len(batch.keys)
        if time.perf_counter() - began >= limit:
            break
    assert began is not None
    return samples / (time.perf_counter() - began)
