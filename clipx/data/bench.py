"""Measure data loading: seconds of each stage, and samples per second of all workers together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from clipx.data.decode import BadImage
from clipx.data.loader import Batches, load
from clipx.data.sample import SampleError

STAGES = ("read", "decode", "augment", "tokenize", "collate")


@dataclass(frozen=True)
class Report:
    """seconds: of one sample in one worker on one core, by stage
    samples: on which `seconds` was measured
    workers: of the loader; 0 is the training process itself
    samples_per_second: of the whole loader
    """

    seconds: dict[str, float]
    samples: int
    workers: int
    samples_per_second: float

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


def bench(batches: Batches, *, seconds: float) -> Report:
    """Measure the stages for half of the time, then the loader. Raises UserError."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        samples, stages = _time_stages(batches, seconds / 2)
    finally:
        torch.set_num_threads(threads)
    rate = _loader_rate(batches, seconds / 2)
    return Report(stages, samples, batches.config.workers, rate)


def _time_stages(batches: Batches, limit: float) -> tuple[int, dict[str, float]]:
    """(samples, seconds of a sample by stage)"""
    _time_batch(batches, 0, dict.fromkeys(STAGES, 0.0))  # opens files and fills caches
    clock = dict.fromkeys(STAGES, 0.0)
    samples = 0
    k = 1
    began = time.perf_counter()
    while time.perf_counter() - began < limit:
        samples += _time_batch(batches, k, clock)
        k += 1
    return samples, {stage: total / samples for stage, total in clock.items()}


def _time_batch(batches: Batches, k: int, clock: dict[str, float]) -> int:
    """Make `batches[k]` stage by stage. Returns the number of good samples."""
    positions = batches.positions(k)
    with _timed(clock, "read"):
        located = batches.corpus.locate(positions)
    all_draws = batches.draws(positions)
    with _timed(clock, "collate"):
        num_views = len(batches.augmentations)
        shape = (len(positions), num_views, 3, batches.image_size, batches.image_size)
        images = torch.empty(shape, dtype=torch.uint8)
    texts = []
    rows = zip(
        positions.tolist(),
        all_draws,
        images,
        located.shard.tolist(),
        located.sample.tolist(),
        strict=True,
    )
    for position, draws, outs, shard, sample in rows:
        try:
            with _timed(clock, "read"):
                stored = batches.corpus.read(shard, sample)
            with _timed(clock, "decode"):
                pixels = batches.reader.decode(stored.images, draws[1:])
        except (SampleError, BadImage, OSError):
            continue  # only good samples are measured; `clipx data verify` lists the bad ones
        with _timed(clock, "augment"):
            batches.write_views(pixels, draws, list(outs))
        with _timed(clock, "tokenize"):
            texts.append(batches.encode_captions(stored.captions, draws))
        if batches.negatives is not None:
            with _timed(clock, "read"):
                number = int(batches.corpus.first_sample[shard]) + sample
                drawn = batches.negatives.draw(number, position)
            with _timed(clock, "tokenize"):
                for text in drawn:
                    batches.encode(text)
    with _timed(clock, "collate"):
        batches.text_views(texts)
    return len(texts)


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] += time.perf_counter() - began


def _loader_rate(batches: Batches, limit: float) -> float:
    """Samples per second, from the second batch on: starting the processes is not loading."""
    loaded = load(batches, 0, 1_000_000_000)  # until the time is over
    next(loaded)
    began = time.perf_counter()
    samples = 0
    for batch in loaded:
        samples += len(batch.keys)
        if time.perf_counter() - began >= limit:
            break
    return samples / (time.perf_counter() - began)
