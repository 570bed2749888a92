"""Run locked trunks over a corpus once. Each rank builds its own files, each core its samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.data.decode import BadImage
from clipx.data.feature_cache import TEXTS_PER_FILE, FeatureCache, load_array, save_array
from clipx.data.sample import SampleError
from clipx.data.tokenizers import pad
from clipx.files import write_whole
from clipx.types import UserError

IMAGES_AT_ONCE = 32  # more are no faster on a CPU: their activations leave its cache
TEXTS_AT_ONCE = 256
SAMPLES_PER_PART = 512  # at most so many are computed again after a build was stopped
TEXTS_PER_PART = 2048
Advance = Callable[[], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""title, total -> a function to call after each sample; see clipx.progress"""


def build_images(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """Build this rank's shards: features of their pictures, and their captions. Raises OSError,
    UserError."""
    cache.folder.mkdir(parents=True, exist_ok=True)
    shards = range(rank, cache.corpus.num_shards, world_size)
    missing = [shard for shard in shards if not cache.caption_file(shard).exists()]
    total = int(cache.corpus.sizes[missing].sum())
    with progress("image features", total) as advance, one_core_each() as pool:
        for shard in missing:
            _build_shard(cache, shard, pool, advance)


def _build_shard(cache: FeatureCache, shard: int, pool: Executor, advance: Advance) -> None:
    image_file = cache.image_file(shard)
    caption_file = cache.caption_file(shard)
    features: list[np.ndarray] = []
    captions: list[list[str]] = []
    # In parts that are stored, so that a stopped build continues inside a large shard.
    for number, part in enumerate(_split(range(cache.corpus.sizes[shard]), SAMPLES_PER_PART)):
        feature_part = _part_of(image_file, number)
        caption_part = _part_of(caption_file, number)
        part_features = load_array(feature_part)
        part_captions = _load_captions(caption_part)
        if part_features is None or part_captions is None:
            part_features, part_captions = _build_part(cache, shard, part, pool, advance)
            save_array(feature_part, part_features)
            write_whole(caption_part, json.dumps(part_captions))
        else:
            _advance_by(len(part), advance)
        features.append(part_features)
        captions += part_captions
    if not features:
        features.append(np.empty(0, dtype=np.float16))  # a shard without samples
    save_array(image_file, np.concatenate(features))
    write_whole(caption_file, json.dumps(captions))  # last: a shard with captions is complete
    _remove_parts(image_file)
    _remove_parts(caption_file)


def _build_part(
    cache: FeatureCache, shard: int, samples: range, pool: Executor, advance: Advance
) -> tuple[np.ndarray, list[list[str]]]:
    features: list[np.ndarray] = []
    captions: list[list[str]] = []
    batches = _split(samples, IMAGES_AT_ONCE)
    for rows, texts in pool.map(lambda batch: _embed_images(cache, shard, batch), batches):
        features.append(rows)
        captions += texts
        _advance_by(len(texts), advance)
    return np.concatenate(features), captions


def _embed_images(
    cache: FeatureCache, shard: int, samples: Sequence[int]
) -> tuple[np.ndarray, list[list[str]]]:
    """Features and captions of some samples. One that cannot be used has no captions: training
    then asks for it, and gets its replacement."""
    size = cache.trunks.image_size
    pixels = torch.zeros((len(samples), 3, size, size), dtype=torch.uint8)
    captions: list[list[str]] = []
    for row, number in enumerate(samples):
        try:
            sample = cache.corpus.read(shard, number)
            pixels[row] = cache.pixels(sample)
            captions.append(sample.caption.texts)
        except (SampleError, BadImage, OSError):
            captions.append([])
    return _float16(cache.trunks.image(pixels)), captions


def build_texts(cache: FeatureCache, progress: Progress, *, rank: int, world_size: int) -> None:
    """Build this rank's part of the distinct captions, after all ranks have built their images.
    Raises OSError, UserError."""
    files = _split(cache.texts().distinct, TEXTS_PER_FILE)
    numbers = range(rank, len(files), world_size)
    missing = [number for number in numbers if not cache.text_file(number).exists()]
    total = sum(len(files[number]) for number in missing)
    with progress("text features", total) as advance, one_core_each() as pool:
        for number in missing:
            file = cache.text_file(number)
            save_array(file, _build_file(cache, file, files[number], pool, advance))
            _remove_parts(file)


def _build_file(
    cache: FeatureCache, file: Path, texts: list[str], pool: Executor, advance: Advance
) -> np.ndarray:
    trunks = cache.trunks
    ids = [trunks.tokenizer.encode(text, trunks.context_length) for text in texts]
    # Captions of like length together, so that little of the work is padding.
    order = np.argsort([len(i) for i in ids], kind="stable")

    def embed(batch: Sequence[int]) -> np.ndarray:
        rows = pad([ids[i] for i in batch], trunks.tokenizer.pad_id, trunks.pad_to)
        return _float16(trunks.text(rows))

    features: list[np.ndarray] = []
    for number, part in enumerate(_split(order.tolist(), TEXTS_PER_PART)):
        part_file = _part_of(file, number)
        part_features = load_array(part_file)
        if part_features is None:
            rows = []
            for batch_features in pool.map(embed, _split(part, TEXTS_AT_ONCE)):
                rows.append(batch_features)
                _advance_by(len(batch_features), advance)
            part_features = np.concatenate(rows)
            save_array(part_file, part_features)
        else:
            _advance_by(len(part), advance)
        features.append(part_features)
    return np.concatenate(features)[np.argsort(order)]


def _load_captions(path: Path) -> list[list[str]] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _part_of(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.part-{number:05d}{file.suffix}")


def _remove_parts(file: Path) -> None:
    for part in file.parent.glob(f"{file.stem}.part-*{file.suffix}"):
        part.unlink(missing_ok=True)


def _split(items: Sequence, size: int) -> list:
    """Consecutive pieces of at most `size`."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def _advance_by(count: int, advance: Advance) -> None:
    for _ in range(count):
        advance()


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
