"""Running locked trunks over a corpus, once: every rank its files, every core its own samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

from clipx.data import decode
from clipx.data.feature_cache import TEXTS_PER_FILE, FeatureCache
from clipx.data.sample import SampleError
from clipx.data.tokenizers import pad
from clipx.types import UserError

IMAGES_AT_ONCE = 32  # more are no faster on a CPU: their activations leave its cache
TEXTS_AT_ONCE = 256
SAMPLES_PER_PART = 512  # what a stopped build computes again at most
TEXTS_PER_PART = 2048
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""title, total -> what to call after each; see clipx.progress"""


def build_images(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """This rank's shards: features of their pictures, and their captions. Raises OSError,
    UserError."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    shards = range(rank, cache.corpus.num_shards, world_size)
    missing = [s for s in shards if not cache.caption_file(s).exists()]
    total = int(cache.corpus.sizes[missing].sum())
    with progress("image features", total) as advance, one_core_each() as pool:
        for shard in missing:
            _build_shard(cache, shard, pool, advance)


def _build_shard(
    cache: FeatureCache, shard: int, pool: Executor, advance: Callable[[], None]
) -> None:
    """In parts that are kept, so that a build that is stopped goes on inside a large shard."""
    parts = _split(range(int(cache.corpus.sizes[shard])), SAMPLES_PER_PART)
    features: list[np.ndarray] = []
    captions: list[list[str]] = []
    for number, part in enumerate(parts):
        done = cache.image_part(shard, number)
        if done is None:
            done = _build_part(cache, shard, part, pool, advance)
            if len(parts) > 1:
                cache.save_image_part(shard, number, *done)
        else:
            for _ in part:
                advance()
        features.append(done[0])
        captions += done[1]
    cache.save_images(shard, np.concatenate(features), captions)
    cache.remove_parts(cache.image_file(shard), cache.caption_file(shard))


def _build_part(
    cache: FeatureCache, shard: int, samples: range, pool: Executor, advance: Callable[[], None]
) -> tuple[np.ndarray, list[list[str]]]:
    """Features and captions of some samples, batch by batch."""
    batches = _split(samples, IMAGES_AT_ONCE)
    rows: list[np.ndarray] = []
    captions: list[list[str]] = []
    for features, texts in pool.map(lambda batch: _images(cache, shard, batch), batches):
        rows.append(features)
        captions += texts
        for _ in texts:
            advance()
    return np.concatenate(rows), captions


def _images(cache: FeatureCache, shard: int, samples: range) -> tuple[np.ndarray, list[list[str]]]:
    """Features and captions of some samples. One that cannot be used has no captions: training will
    ask for it, and get its replacement."""
    pixels = torch.zeros((len(samples), 3, *[cache.trunks.image_size] * 2), dtype=torch.uint8)
    captions: list[list[str]] = []
    for row, number in enumerate(samples):
        try:
            sample = cache.corpus.read(shard, number)
            pixels[row] = cache.pixels(sample)
            captions.append(sample.caption.texts)
        except (SampleError, decode.BadImage, OSError):
            captions.append([])
    return _float16(cache.trunks.image(pixels)), captions


def build_texts(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """This rank's part of the distinct captions, once all ranks have built their images. Raises
    OSError, UserError."""
    texts = cache.texts().distinct
    files = _split(range(len(texts)), TEXTS_PER_FILE)
    missing = [
        file for file in range(rank, len(files), world_size) if not cache.text_file(file).exists()
    ]
    total = sum(len(files[file]) for file in missing)
    with progress("text features", total) as advance, one_core_each() as pool:
        for file in missing:
            part = [texts[i] for i in files[file]]
            cache.save_texts(file, _texts(cache, file, part, pool, advance))
            cache.remove_parts(cache.text_file(file))


def _texts(
    cache: FeatureCache,
    file: int,
    texts: list[str],
    pool: Executor,
    advance: Callable[[], None],
) -> np.ndarray:
    """Captions of like length together, so that little of the work is padding."""
    trunks = cache.trunks
    ids = [trunks.tokenizer.encode(text, trunks.context_length) for text in texts]
    order = np.argsort([len(i) for i in ids], kind="stable")

    def run(part: range) -> np.ndarray:
        rows = pad([ids[order[i]] for i in part], trunks.tokenizer.pad_id, trunks.pad_to)
        return _float16(trunks.text(rows))

    features: list[np.ndarray] = []
    for number, part in enumerate(_split(range(len(ids)), TEXTS_PER_PART)):
        done = cache.text_part(file, number)
        if done is None:
            batches = [
                part[first : first + TEXTS_AT_ONCE] for first in range(0, len(part), TEXTS_AT_ONCE)
            ]
            done = np.concatenate(_each(pool, run, batches, advance))
            if len(ids) > TEXTS_PER_PART:
                cache.save_text_part(file, number, done)
        else:
            for _ in part:
                advance()
        features.append(done)
    return np.concatenate(features)[np.argsort(order)]


def _each(
    pool: Executor,
    run: Callable[[range], np.ndarray],
    batches: list[range],
    advance: Callable[[], None],
) -> list[np.ndarray]:
    """What `run` returns for each batch."""
    done: list[np.ndarray] = []
    for rows in pool.map(run, batches):
        done.append(rows)
        for _ in rows:
            advance()
    return done


def _split(numbers: range, size: int) -> list[range]:
    """Consecutive pieces of at most `size`."""
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def _float16(features: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # told below
        out = features.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(out).all():
        raise UserError("a trunk's features exceed float16; train without cache_features")
    return out


@contextmanager
def one_core_each() -> Iterator[Executor]:
    """Threads, as many as torch uses, in each of which it uses one.

    Sharing every layer of a small trunk, cores wait for one another hundreds of times a batch: on
    two busy cores that took ten times as long as each working through its own samples.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # After a signal only the batches under way are waited for, not all that are in line.
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
