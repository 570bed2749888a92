"""Where the time of loading goes: samples per second of each stage, and of all workers together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch

from clipx.data.decode import BadImage
from clipx.data.loader import Batches, load
from clipx.data.order import uniforms
from clipx.data.sample import SampleError
from clipx.data.tokenizers import pad
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
    corpus, config = batches.corpus, batches.config

    def timed[T](stage: str, act: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return act()
        finally:
            clock[stage] += time.perf_counter() - began

    positions = batches.positions(k)
    located = timed("read", lambda: corpus.locate(positions))
    draws = uniforms(corpus.order.seed, positions[:, None], 1 + NUM_DRAWS)
    size = batches.image_size
    image = timed("collate", lambda: torch.empty((len(positions), 3, size, size), dtype=torch.uint8))
    texts = []
    for row, (shard, sample) in enumerate(zip(located.shard.tolist(), located.sample.tolist(), strict=True)):
        try:
            found = timed("read", lambda: corpus.read(shard, sample))
            pixels = timed("decode", lambda: config.decode(found.image))
        except (SampleError, BadImage, OSError):
            continue  # told by `clipx data verify`; here only the time of the good ones counts
        timed("augment", lambda: augment(pixels, size, config.augmentation, draws[row][1:], out=image[row]))
        caption = found.caption.draw(draws[row][0])
        texts.append(timed("tokenize", lambda: batches.tokenizer.encode(caption, batches.context_length)))
    timed("collate", lambda: pad(texts, batches.tokenizer.pad_id, batches.pad_to))
    return len(texts)
