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
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""title, total -> what to call after each; see clipx.data.progress"""


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
    parts = _parts(int(cache.corpus.sizes[shard]), IMAGES_AT_ONCE)
    rows: list[np.ndarray] = []
    captions: list[list[str]] = []
    for features, texts in pool.map(lambda part: _images(cache, shard, part), parts):
        rows.append(features)
        captions += texts
        for _ in texts:
            advance()
    cache.save_images(shard, np.concatenate(rows), captions)


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
    files = _parts(len(texts), TEXTS_PER_FILE)
    missing = [
        file for file in range(rank, len(files), world_size) if not cache.text_file(file).exists()
    ]
    total = sum(len(files[file]) for file in missing)
    with progress("text features", total) as advance, one_core_each() as pool:
        for file in missing:
            part = [texts[i] for i in files[file]]
            cache.save_texts(file, _texts(cache, part, pool, advance))


def _texts(
    cache: FeatureCache, texts: list[str], pool: Executor, advance: Callable[[], None]
) -> np.ndarray:
    """Captions of like length together, so that little of the work is padding."""
    trunks = cache.trunks
    ids = [trunks.tokenizer.encode(text, trunks.context_length) for text in texts]
    order = np.argsort([len(i) for i in ids], kind="stable")

    def run(part: range) -> np.ndarray:
        rows = pad([ids[order[i]] for i in part], trunks.tokenizer.pad_id, trunks.pad_to)
        return _float16(trunks.text(rows))

    features = []
    for rows in pool.map(run, _parts(len(ids), TEXTS_AT_ONCE)):
        features.append(rows)
        for _ in rows:
            advance()
    return np.concatenate(features)[np.argsort(order)]


def _parts(total: int, size: int) -> list[range]:
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


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
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
