"""Finding what is bad in a corpus before a run meets it: every sample is read, its picture decoded
and its caption looked at, as training would."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice

import torch

from clipx.data.config import DataConfig
from clipx.data.decode import BadImage
from clipx.data.sample import BadSample, SampleError
from clipx.data.stream import Corpus

_CHUNK = 200
"""Samples of a task: enough to outweigh its cost, few enough to share the last ones out."""
Task = tuple[int, int, int]  # shard, first sample, end


def verify(
    config: DataConfig, corpus: Corpus, *, workers: int, advance: Callable[[int], None]
) -> Iterator[BadSample]:
    """What training would put into quarantine, whole shards first, then samples in the order of the
    corpus. Positions are -1: a sample has one in each epoch.

    advance: called with the number of samples done
    """
    yield from corpus.faults
    tasks = (
        (shard, first, min(first + _CHUNK, size))
        for shard, size in enumerate(corpus.sizes.tolist())
        for first in range(0, size, _CHUNK)
    )
    for (_, first, end), bad in _results(config, corpus, tasks, workers):
        advance(end - first)
        yield from bad


def _results(
    config: DataConfig, corpus: Corpus, tasks: Iterator[Task], workers: int
) -> Iterator[tuple[Task, list[BadSample]]]:
    """In the order of the tasks, of which few are held at a time."""
    if workers == 0:
        yield from ((task, _bad_samples(config, corpus, task)) for task in tasks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _start, (config, corpus)) as pool:
        running: dict[Task, Future[list[BadSample]]] = {
            task: pool.submit(_work, task) for task in islice(tasks, 4 * workers)
        }
        while running:
            task, future = next(iter(running.items()))
            wait([future], return_when=FIRST_COMPLETED)
            del running[task]
            running |= {new: pool.submit(_work, new) for new in islice(tasks, 1)}
            yield task, future.result()


_worker: list[tuple[DataConfig, Corpus]] = []
"""What a worker process was started with."""


def _start(config: DataConfig, corpus: Corpus) -> None:
    torch.set_num_threads(1)
    _worker.append((config, corpus))


def _work(task: Task) -> list[BadSample]:
    config, corpus = _worker[0]
    return _bad_samples(config, corpus, task)


def _bad_samples(config: DataConfig, corpus: Corpus, task: Task) -> list[BadSample]:
    shard, first, end = task
    bad = []
    for sample in range(first, end):
        try:
            found = corpus.read(shard, sample)
            config.decode(found.image)
            bad += corpus.notes(-1, shard, found)
        except (SampleError, BadImage, OSError) as error:
            bad.append(corpus.bad_sample(-1, shard, sample, error))
    return bad
