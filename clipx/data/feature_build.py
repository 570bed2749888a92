"""Run locked trunks over a corpus once. Each rank builds its own files, each core its samples."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.data.feature_cache import TEXTS_PER_FILE, FeatureCache
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.data.tokenizers import pad
from clipx.files import replacing, write_whole
from clipx.types import UserError

IMAGES_AT_ONCE = 32  # more are no faster on a CPU: their activations leave its cache
TEXTS_AT_ONCE = 256
SAMPLES_PER_PART = 512  # at most so many are computed again after a build was stopped
TEXTS_PER_PART = 2048
Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""title, total -> a function to call with the number of samples done; see clipx.progress"""
Embedded = tuple[np.ndarray, list[list[str]]]
"""Features of a batch, and the captions of each of its pictures"""


def build_images(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """Build this rank's shards: features of their pictures, and their captions. Raises OSError,
    UserError."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    missing = []
    total = 0
    for shard in range(rank, cache.corpus.num_shards, world_size):
        if not cache.caption_file(shard).exists():
            missing.append(shard)
            total += int(cache.corpus.sizes[shard])
    with progress("image features", total) as advance, one_core_each() as pool:
        for shard in missing:
            file = cache.image_file(shard)
            samples = range(cache.corpus.sizes[shard])
            embed = partial(_embed_images, cache, shard)
            sizes = (SAMPLES_PER_PART, IMAGES_AT_ONCE)
            features, captions = _build_in_parts(file, samples, sizes, embed, pool, advance)
            if not features:
                features.append(np.empty(0, dtype=np.float16))  # a shard without samples
            with replacing(file) as temporary, temporary.open("wb") as opened:
                np.save(opened, np.concatenate(features))
            # Last: a shard with captions is complete.
            write_whole(cache.caption_file(shard), json.dumps(captions))
            _remove_parts(file)


def _embed_images(cache: FeatureCache, shard: int, samples: Sequence[int]) -> Embedded:
    """Features and captions of some samples. One that cannot be used has no captions: training
    then asks for it, and gets its replacement."""
    size = cache.trunks.image_size
    pixels = torch.zeros((len(samples), 3, size, size), dtype=torch.uint8)
    captions: list[list[str]] = []
    for row, number in enumerate(samples):
        try:
            sample = cache.corpus.read(shard, number)
            pixels[row] = cache.pixels(sample)
            captions.append(sample.captions[0].texts)
        except BAD_SAMPLE_ERRORS:
            captions.append([])
    return _float16(cache.trunks.image(pixels)), captions


def build_texts(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """Build this rank's part of the distinct captions, after all ranks have built their images.
    Raises OSError, UserError."""
    files = _split(cache.texts().distinct, TEXTS_PER_FILE)
    missing = []
    total = 0
    for number in range(rank, len(files), world_size):
        if not cache.text_file(number).exists():
            missing.append(number)
            total += len(files[number])
    with progress("text features", total) as advance, one_core_each() as pool:
        for number in missing:
            _build_text_file(cache, number, files[number], pool, advance)


def _build_text_file(
    cache: FeatureCache, number: int, texts: list[str], pool: Executor, advance: Advance
) -> None:
    trunks = cache.trunks
    ids = [trunks.tokenizer.encode(text, trunks.context_length) for text in texts]

    def embed(batch: Sequence[int]) -> Embedded:
        rows = pad([ids[i] for i in batch], trunks.tokenizer.pad_id, trunks.pad_to)
        return _float16(trunks.text(rows)), []

    # Captions of like length together, so that little of the work is padding.
    by_length = np.argsort([len(caption) for caption in ids], kind="stable")
    file = cache.text_file(number)
    sizes = (TEXTS_PER_PART, TEXTS_AT_ONCE)
    features, _ = _build_in_parts(file, by_length.tolist(), sizes, embed, pool, advance)
    in_order = np.argsort(by_length)  # of the captions
    with replacing(file) as temporary, temporary.open("wb") as opened:
        np.save(opened, np.concatenate(features)[in_order])
    _remove_parts(file)


def _build_in_parts(
    file: Path,
    items: Sequence[int],
    sizes: tuple[int, int],
    embed: Callable[[Sequence[int]], Embedded],
    pool: Executor,
    advance: Advance,
) -> tuple[list[np.ndarray], list[list[str]]]:
    """Features of all items, one array for each part, and their captions. Parts are stored beside
    `file`, so that a stopped build continues inside a large file.

    sizes: items of a part, and of a batch
    embed: called with the batches of a part, in threads
    """
    part_size, batch_size = sizes
    features = []
    captions: list[list[str]] = []
    for number, part in enumerate(_split(items, part_size)):
        path = file.with_name(f"{file.stem}.part-{number:05d}.npz")
        try:
            with path.open("rb") as opened, np.load(opened) as archive:
                stored = dict(archive)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # missing or damaged
            part_features = []
            part_captions: list[list[str]] = []
            for rows, texts in pool.map(embed, _split(part, batch_size)):
                part_features.append(rows)
                part_captions += texts
                advance(len(rows))
            encoded = np.frombuffer(json.dumps(part_captions).encode(), np.uint8)
            stored = {"features": np.concatenate(part_features), "captions": encoded}
            with replacing(path) as temporary, temporary.open("wb") as opened:
                np.savez(opened, **stored)  # type: ignore[arg-type]
        else:
            advance(len(part))
        features.append(stored["features"])
        captions += json.loads(stored["captions"].tobytes())
    return features, captions


def _remove_parts(file: Path) -> None:
    for part in file.parent.glob(f"{file.stem}.part-*"):
        part.unlink(missing_ok=True)


def _split(items: Sequence, size: int) -> list:
    """Consecutive pieces of at most `size`."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def _float16(features: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):  # the error below names the remedy
        out = features.float().cpu().numpy().astype(np.float16)
    if not np.isfinite(out).all():
        raise UserError("a trunk's features exceed float16; train without cache_features")
    return out


@contextmanager
def one_core_each() -> Iterator[Executor]:
    """Threads, as many as torch uses, in each of which it uses one core.

    If cores share every layer of a small trunk, they wait for one another hundreds of times a
    batch: on two busy cores that took ten times as long as each working through its own samples.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # After a signal, wait for the batches that are being computed, not for all in the queue.
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
