"""Mined hard negatives: for each sample of a corpus, other samples whose captions a model takes for
its own. `clipx mine` writes the file, and training reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.captions import Caption
from clipx.data.corpus import Corpus
from clipx.data.order import hash_of, uniforms
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.files import replacing
from clipx.types import UserError

_FORMAT = "clipx negatives 1"
_DRAWS_KEY = 0x4E65  # separates these draws from those of captions and augmentation


def write_negatives(
    path: Path, numbers: np.ndarray, *, corpus_digest: str, about: Mapping[str, Any]
) -> None:
    """Write a file atomically. Raises OSError.

    numbers: (N, K) int64 numbers of the negatives of each sample among all samples of the corpus,
        nearest first; -1 where a sample has fewer
    about: model and settings, for people
    """
    from safetensors.numpy import save

    metadata = {"format": _FORMAT, "corpus": corpus_digest, "about": json.dumps(about)}
    with replacing(path) as temporary:
        # Not `save_file`, whose files only their owner can read.
        temporary.write_bytes(save({"negatives": numbers}, metadata=metadata))


def read_negatives(path: Path, corpus: Corpus) -> np.ndarray:
    """The (N, K) numbers of a file. Raises UserError, also for a file of another corpus."""
    from safetensors import SafetensorError, safe_open

    remedy = "write one with `clipx mine MODEL CORPUS --out FILE`"
    try:
        with safe_open(path, framework="np") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"data.negatives {path} is no file of negatives; {remedy}")
            digest = metadata.get("corpus", "unknown")
            if digest != corpus.digest:
                raise UserError(
                    f"data.negatives {path} was mined in another corpus, or in this one before it "
                    f"changed (digest {digest[:12]}, now {corpus.digest[:12]}); {remedy}"
                )
            numbers = opened.get_tensor("negatives")
    except (OSError, SafetensorError) as error:
        raise UserError(f"data.negatives {path} cannot be read: {error}; {remedy}") from error
    # The digest is a text in the file, so its numbers may still be of another corpus.
    num_samples = int(corpus.sizes.sum())
    is_table = numbers.ndim == 2 and len(numbers) == num_samples
    if not is_table or (numbers.size and numbers.max() >= num_samples):
        raise UserError(f"data.negatives {path} does not fit {num_samples:,} samples; {remedy}")
    return numbers


def num_drawn(numbers: np.ndarray, wanted: int | None) -> int:
    """How many negatives of each sample a batch has. Raises UserError."""
    stored = numbers.shape[1]
    if wanted is not None and wanted > stored:
        raise UserError(
            f"data.num_negatives {wanted}: the file of data.negatives has {stored} of each sample; "
            f"lower it, or mine with --negatives {wanted}"
        )
    return stored if wanted is None else wanted


class NegativeTexts:
    """The captions of mined negatives, as functions of (seed, position).

    count: at most so many at each visit
    """

    def __init__(self, corpus: Corpus, numbers: np.ndarray, count: int) -> None:
        self.count = count
        self._corpus = corpus
        self._numbers = numbers
        self._key = int(hash_of(corpus.order.seed, _DRAWS_KEY)[0])

    def batch(
        self,
        samples: Sequence[int],
        positions: Sequence[int],
        own: Sequence[list[int]],
        encode: Callable[[str], list[int]],
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of `count` texts of each sample, and how many of them are negatives; the others
        repeat the sample's own caption, because an empty text is no input for a tower.

        own: token ids of the captions; encode: text -> token ids
        """
        rows = []
        counts = []
        for sample, position, own_ids in zip(samples, positions, own, strict=True):
            drawn = self.draw(sample, position)
            rows += [encode(text) for text in drawn]
            rows += [own_ids] * (self.count - len(drawn))
            counts.append(len(drawn))
        return rows, counts

    def draw(self, sample: int, position: int) -> list[str]:
        """Captions of negatives of a sample: which of the stored ones, and which caption of each,
        is drawn anew at each visit. Fewer than `count` where fewer are stored and can be read."""
        stored = self._numbers[sample]
        draws = uniforms(self._key, position, 2 * len(stored))
        # The first of a random order of the stored ones.
        turns = np.argsort(draws[: len(stored)], kind="stable").tolist()
        texts = []
        for turn in turns:
            if len(texts) == self.count:
                break
            if stored[turn] < 0:
                continue
            caption = self._read(int(stored[turn]))
            if caption is not None:
                texts.append(caption.draw(draws[len(stored) + turn]))
        return texts

    def _read(self, number: int) -> Caption | None:
        """The caption of a sample by its number in the corpus; None if it cannot be read."""
        corpus = self._corpus
        assert corpus.fields is not None, "an objective without captions takes no negatives"
        shard, sample = corpus.place_of(number)
        try:
            return corpus.fields.of(corpus.read_raw(shard, sample, images=()))
        except BAD_SAMPLE_ERRORS:
            return None  # quarantined when its own turn comes
