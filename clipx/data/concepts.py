"""The concept of each sample of a corpus, by which batches group samples: its label or its
caption. Read once, and then kept in the user's cache directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS, key_hash
from clipx.data.shards import in_threads
from clipx.data.sources.webdataset import close_shards
from clipx.files import cache_folder, replacing

_VERSION = 1
_CHUNK = 10_000  # samples between two reports of progress
By = Literal["label", "caption"]


def read_concepts(corpus: Corpus, by: By, advance: Callable[[int], None]) -> np.ndarray:
    """(N,) int64 numbers of concepts from 0 without gaps. Samples with the same label, or the same
    first caption, have the same one; a sample that cannot be read has one of its own.

    advance: called with the number of samples done
    """
    store = _store_of(corpus, by)
    total = int(corpus.sizes.sum())
    with suppress(OSError, ValueError, EOFError):  # missing or damaged: read anew
        concepts = np.load(store)
        if concepts.shape == (total,) and concepts.dtype == np.int64:
            advance(total)
            return concepts

    def value_of(number: int) -> int | None:
        try:
            raw = corpus.read_raw(*corpus.place_of(number), images=())
            if by == "label":
                assert corpus.label_field is not None, "checked before"
                return corpus.label_field.of(raw)
            assert corpus.fields is not None, "checked before"
            return key_hash(corpus.fields.of(raw).texts[0])
        except BAD_SAMPLE_ERRORS:
            return None  # training replaces it

    values = np.zeros(total, dtype=np.int64)
    is_known = np.zeros(total, dtype=np.bool_)
    for first in range(0, total, _CHUNK):
        numbers = range(first, min(total, first + _CHUNK))
        for number, value in zip(numbers, in_threads(value_of, numbers), strict=True):
            if value is not None:
                values[number] = value
                is_known[number] = True
        advance(len(numbers))
    close_shards()  # forked workers would inherit hundreds of open files

    concepts = np.empty(total, dtype=np.int64)
    distinct, concepts[is_known] = np.unique(values[is_known], return_inverse=True)
    num_unknown = total - int(is_known.sum())
    concepts[~is_known] = len(distinct) + np.arange(num_unknown)
    # A store that fails today may not fail tomorrow, so only a complete reading is kept.
    if num_unknown == 0:
        with suppress(OSError):  # a disk that is full or read-only costs the next start
            store.parent.mkdir(parents=True, exist_ok=True)
            with replacing(store) as temporary, temporary.open("wb") as opened:
                np.save(opened, concepts)
    return concepts


def _store_of(corpus: Corpus, by: By) -> Path:
    """The digest covers the contents of the corpus, so that an entry never has to be removed."""
    field: object = None if corpus.label_field is None else corpus.label_field.name
    if by == "caption" and corpus.fields is not None:
        field = list(corpus.fields.weights)
    name = hashlib.sha1(repr((_VERSION, corpus.digest, by, field)).encode()).hexdigest()
    return cache_folder("concepts") / f"{name}.npy"
