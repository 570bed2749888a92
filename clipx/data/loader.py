"""Batches of decoded images and token ids.

Batch k of rank r is a function of (seed, k, r, R) alone, so that a run resumes by starting the list
of batch numbers elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clipx.data.augment import NUM_DRAWS, Augmentation, augment
from clipx.data.captions import Caption
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus, Sample
from clipx.data.negatives import NegativeTexts
from clipx.data.order import batch_positions, hash_of, uniforms
from clipx.data.preprocessing import center
from clipx.data.reader import build_reader
from clipx.data.reinforcement import Reinforcement
from clipx.data.sample import BadSample, key_hash
from clipx.data.tokenizers import CachedTokenizer, Tokenizer, pad
from clipx.data.workers import empty_bytes, from_workers
from clipx.types import Batch, RankError, UserError

MIN_SAMPLES_FOR_BAD_FRACTION = 500  # of fewer, the share of bad samples proves nothing


@dataclass(frozen=True)
class Loaded(Batch):
    """A batch with the bad samples on the way to it.

    fingerprint: sum over samples of a hash of (position, key), mod 2^63, which can be summed over
        ranks and steps in any order
    """

    fingerprint: int = 0
    bad: list[BadSample] = field(default_factory=list)

    def pin_memory(self) -> Loaded:
        return replace(self, views={name: view.pin_memory() for name, view in self.views.items()})


def fingerprint(positions: np.ndarray, keys: list[str]) -> int:
    hashes = hash_of(positions, np.array([key_hash(key) for key in keys], dtype=np.uint64))
    return int(hashes.sum(dtype=np.uint64)) % 2**63


def view_name(number: int, kind: str = "image") -> str:
    """image, image_2, image_3 ... of the view 0, 1, 2 ..., or text, text_2 ..."""
    return kind if number == 0 else f"{kind}_{number + 1}"


class BatchSource(Protocol):
    """Batches by their number: of images, or of features that locked towers computed from them."""

    config: DataConfig

    def __getitem__(self, index: int) -> Loaded: ...


class Batches:
    """`batches[k]` is this rank's part of global batch k. Raises UserError.

    pad_to: tokens of each caption; None for the longest of the batch
    fit: resizing without a random crop, see `Preprocessing.fit`
    augmentations: of the views of an image, by default that of the config alone. Views are named
        image, image_2, image_3 ...; those of a pair are its two images. A corpus without captions
        has no `text`, a pair of texts has text and text_2, and labels are `label` (B,) int64
    negatives: with k of them, a batch has negative_text (B, k, T) int64, and num_negatives (B,)
        int64, how many of the k are real; the others repeat the sample's own caption
    reinforcement: a teacher's embeddings, as further views, and the augmentations that it saw
    """

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        context_length: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        pad_to: int | None = None,
        fit: Callable[[Tensor, int], Tensor] = center,
        augmentations: Sequence[Augmentation] | None = None,
        reinforcement: Reinforcement | None = None,
        negatives: NegativeTexts | None = None,
    ) -> None:
        self.config = config
        self.corpus = corpus
        # A corpus that is decoded once is small, and its captions can be tokenized once too.
        self.tokenizer = tokenizer if config.decoded_cache is None else CachedTokenizer(tokenizer)
        self.image_size = image_size
        self.context_length = context_length
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        self.pad_to = pad_to
        self.fit = fit
        self.augmentations = [config.augmentation] if augmentations is None else augmentations
        self.negatives = negatives
        self.reader = build_reader(config, corpus, image_size, self.augmentations)
        self.reinforcement = reinforcement
        self._last_prefetched = -1

    def __getitem__(self, index: int) -> Loaded:
        self._prefetch(index)
        positions = self.positions(index)
        located = self.corpus.locate(positions)
        draws = self.draws(positions)
        shape = (len(positions), 3, self.image_size, self.image_size)
        images = [empty_bytes(*shape) for _ in self.augmentations]
        texts: list[list[list[int]]] = []  # of each sample
        labels: list[int] = []
        keys: list[str] = []
        samples: list[int] = []
        bad: list[BadSample] = []
        stored = self.reinforcement.rows(positions) if self.reinforcement else None
        use = self.reader.use if stored is None else partial(stored.use, self.reader)
        places = zip(
            positions.tolist(), located.shard.tolist(), located.sample.tolist(), strict=True
        )
        for row, place in enumerate(places):
            outs = [image[row] for image in images]
            prepare = partial(self._prepare, draws=draws[row], outs=outs)
            used = use(*place, draws[row, 1:], prepare)
            ids, label = used.value
            texts.append(ids)
            if label is not None:
                labels.append(label)
            keys.append(used.key)
            samples.append(int(self.corpus.first_sample[used.shard]) + used.sample)
            bad += used.bad
        views = {view_name(number): image for number, image in enumerate(images)}
        views |= self.text_views(texts)
        if stored is not None:
            views |= stored.views()
        if self.negatives is not None:
            own = [ids[0] for ids in texts]
            drawn, counts = self.negatives.batch(samples, positions.tolist(), own, self.encode)
            views["negative_text"] = self.pad(drawn).unflatten(0, (len(samples), -1))
            views["num_negatives"] = torch.tensor(counts, dtype=torch.int64)
        if labels:
            views["label"] = torch.tensor(labels, dtype=torch.int64)
        return Loaded(
            views=views,
            keys=keys,
            positions=positions.tolist(),
            state={"position": (index + 1) * self.global_batch_size},
            samples=samples,
            fingerprint=fingerprint(positions, keys),
            bad=bad,
        )

    def _prepare(
        self, pixels: Sequence[Tensor], sample: Sample, draws: np.ndarray, outs: list[Tensor]
    ) -> tuple[list[list[int]], int | None]:
        self.write_views(pixels, draws, outs)
        return self.encode_captions(sample.captions, draws), sample.label

    def positions(self, k: int) -> np.ndarray:
        """(B,) positions of this rank's part of global batch k."""
        size = self.global_batch_size
        return batch_positions(k, size, rank=self.rank, world_size=self.world_size)

    def draws(self, positions: np.ndarray) -> np.ndarray:
        """(B, 1 + V * NUM_DRAWS): the draw of the caption, then those of each of V views. A pair of
        texts has one more, that of its second text."""
        count = 1 + len(self.augmentations) * NUM_DRAWS
        count += max(0, self.corpus.num_texts - 1)
        return uniforms(self.corpus.order.seed, positions[:, None], count)

    def write_views(self, pixels: Sequence[Tensor], draws: np.ndarray, outs: list[Tensor]) -> None:
        """pixels: of the picture, or of one for each view"""
        for number, (augmentation, out) in enumerate(zip(self.augmentations, outs, strict=True)):
            picture = pixels[0] if len(pixels) == 1 else pixels[number]
            of_view = draws[1 + number * NUM_DRAWS :]
            augment(picture, self.image_size, augmentation, of_view, out=out, fit=self.fit)

    def encode_captions(self, captions: Sequence[Caption], draws: np.ndarray) -> list[list[int]]:
        """Token ids of each text of a sample."""
        of_texts = [draws[0], *draws[1 + len(self.augmentations) * NUM_DRAWS :]]
        ids = []
        for caption, draw in zip(captions, of_texts, strict=False):
            ids.append(self.encode(caption.draw(draw)))
        return ids

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, self.context_length)

    def text_views(self, texts: list[list[list[int]]]) -> dict[str, Tensor]:
        """(B, T) int64 of each text. texts: ids of each text of each sample"""
        views = {}
        for number in range(self.corpus.num_texts):
            views[view_name(number, "text")] = self.pad([ids[number] for ids in texts])
        return views

    def pad(self, texts: list[list[int]]) -> Tensor:
        """(B, T) int64"""
        return pad(
            texts,
            self.tokenizer.pad_id,
            self.pad_to,
            multiple=self.config.text_multiple,
            context_length=self.context_length,
        )

    def _prefetch(self, k: int) -> None:
        """Start fetching the remote shards of the batches up to a quarter of a window ahead."""
        if not self.corpus.is_remote:
            return
        ahead = self.config.streams * self.config.window // (4 * self.global_batch_size)
        first = max(k, self._last_prefetched + 1)
        last = k + max(8, ahead)
        self._last_prefetched = max(last, self._last_prefetched)  # so each position comes once
        if first <= last:
            positions = [self.positions(batch) for batch in range(first, last + 1)]
            self.corpus.prefetch(np.concatenate(positions))


def load(batches: BatchSource, first: int, stop: int) -> Generator[Loaded, None, None]:
    """This rank's parts of the global batches first ... stop - 1, in order. Raises UserError."""
    limit = batches.config.max_bad_fraction
    num_samples = 0
    num_bad = 0
    numbers = range(first, stop)
    for batch in from_workers(batches.__getitem__, numbers, batches.config.workers):
        if isinstance(batch, UserError):
            raise RankError(str(batch))
        yield batch  # before the check, so that its bad samples reach the quarantine
        num_samples += len(batch.keys)
        num_bad += len(batch.bad)
        if num_samples >= MIN_SAMPLES_FOR_BAD_FRACTION and num_bad > limit * num_samples:
            message = f"{num_bad} of {num_samples} samples are bad, more than "
            message += f"data.max_bad_fraction={limit}; see quarantine.jsonl"
            if batch.bad:
                last = batch.bad[-1]
                message += f"; the last: {last.key} of {last.shard}: {last.message}"
            raise RankError(message)
