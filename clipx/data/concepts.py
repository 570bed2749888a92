"""The concept of each sample of a corpus, by which batches group samples: its label or its
caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS, key_hash
from clipx.data.sample_values import read_values, store_of

By = Literal["label", "caption"]


def read_concepts(corpus: Corpus, by: By, advance: Callable[[int], None]) -> np.ndarray:
    """(N,) int64 numbers of concepts from 0 without gaps. Samples with the same label, or the same
    first caption, have the same one; a sample that cannot be read has one of its own.

    advance: called with the number of samples done
    """
    total = int(corpus.sizes.sum())
    field: object = None if corpus.label_field is None else corpus.label_field.name
    if by == "caption" and corpus.fields is not None:
        field = list(corpus.fields.weights)
    store = store_of("concepts", corpus.digest, by, field)
    concepts = store.load(total)
    if concepts is not None:
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

    values, is_known = read_values(total, value_of, advance)
    concepts = np.empty(total, dtype=np.int64)
    distinct, concepts[is_known] = np.unique(values[is_known], return_inverse=True)
    num_unknown = total - int(is_known.sum())
    concepts[~is_known] = len(distinct) + np.arange(num_unknown)
    # A store that fails today may not fail tomorrow, so only a complete reading is kept.
    if num_unknown == 0:
        store.save(concepts)
    return concepts
