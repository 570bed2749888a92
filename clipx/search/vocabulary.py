"""Names that regions of a map may have: words of the captions, or a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.class_lists import SUBSETS, known_classes
from clipx.evaluators.test_sets import text_lines
from clipx.types import UserError

MAX_NAMES = 3000
MAX_WORDS = 2  # of a name
FEWEST_CAPTIONS = 5  # that have a name
_PHRASE_ENDS = re.compile(r"[^\w\s'-]+|\s-\s")
_WORD = r"(?u)\b[^\W\d_][\w'-]+\b"  # of two letters or more, not beginning with a digit


@dataclass(frozen=True)
class Names:
    """texts: distinct, those of captions by their frequency

    occurrences: (N, V) scipy.sparse, 1 where the caption of a row has the name; None for a list
    """

    texts: list[str]
    occurrences: Any = None

    def __len__(self) -> int:
        return len(self.texts)


def read_names(source: str) -> list[str]:
    """Distinct names in their order, without spaces around them. Raises UserError.

    source: a file with a name a line, or the name of a published list such as `imagenet`, see
        `clipx.data.class_lists`
    """
    if source in SUBSETS:
        names = known_classes(source).names
    else:
        lists = ", ".join(SUBSETS)
        path = Path(source)
        # A word without an ending was meant as a list.
        if path.name == source and not path.suffix and not path.exists():
            raise UserError(
                f"--names {source} is neither a file with one name a line nor one of {lists}"
            )
        try:
            names = text_lines(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"--names {source} cannot be read: {reason}; give a text file with a name a line, "
                f"or one of {lists}"
            ) from error
        if not names:
            raise UserError(f"--names {source} is empty; write a name a line")
    return list(dict.fromkeys(name.strip() for name in names))


def names_of_captions(captions: Sequence[str | None]) -> Names:
    """The words and pairs of words that most captions have, at most MAX_NAMES; none where no word
    is repeated."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

    phrases_of = [_PHRASE_ENDS.split(caption or "") for caption in captions]
    terms = CountVectorizer(ngram_range=(1, MAX_WORDS), token_pattern=_WORD).build_analyzer()

    def names(phrases: list[str]) -> list[str]:
        # Two words that a comma separates are no pair.
        found = []
        for phrase in phrases:
            for name in terms(phrase):
                if ENGLISH_STOP_WORDS.isdisjoint(name.split()):
                    found.append(name)
        return found

    counter = CountVectorizer(analyzer=names, binary=True)
    try:
        occurrences: Any = counter.fit_transform(phrases_of)
    except ValueError:  # scikit-learn's, of captions without any word
        return Names([])
    counts = np.asarray(occurrences.sum(axis=0))[0]
    found = counter.get_feature_names_out()
    order = np.argsort(-counts, kind="stable")[:MAX_NAMES]
    order = order[counts[order] >= FEWEST_CAPTIONS]
    return Names([str(name) for name in found[order]], occurrences.tocsc()[:, order])
