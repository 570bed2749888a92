"""Names for clusters: the class that most pictures have, or the words that set captions apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer

from clipx.evaluators.classifier import classifier
from clipx.search.clusters import Clusters, assign
from clipx.types import ImageTextEncoder

NUM_WORDS = 3
PROMPT = "a photo of a {c}"


def names_by_class(
    encoder: ImageTextEncoder,
    rows: np.ndarray,
    clusters: Clusters,
    names: Sequence[str],
    prompts: Sequence[str] = (PROMPT,),
) -> list[str]:
    """(K,) the class that most pictures of each cluster have by zero-shot (arXiv:2103.00020); of
    equally frequent ones the first. A center is a poorer guess: it is far from all texts, and much
    alike for many clusters. Several clusters may have one name. Raises UserError for prompts
    without a place for the name.

    rows: (N, D) of the pictures; names: C of them; prompts: with {c} in the place of the name
    """
    classes = classifier(encoder, names, prompts).numpy()
    class_of_row, _ = assign(rows, classes)
    counts = np.zeros((len(clusters.centers), len(names)), dtype=np.int64)
    np.add.at(counts, (clusters.labels, class_of_row), 1)
    return [names[number] for number in counts.argmax(axis=1).tolist()]


def names_by_words(texts: Sequence[str | None], clusters: Clusters) -> list[str | None]:
    """(K,) the three words that set the texts of each cluster apart from those of the others, by
    c-TF-IDF (BERTopic, arXiv:2203.05794): tf * log(1 + A / f), where tf is how often a word is in
    the cluster, f in all, and A the mean number of words of a cluster. None for a cluster without
    words.

    texts: (N,) of the rows
    """
    documents: list[list[str]] = [[] for _ in clusters.centers]
    for text, label in zip(texts, clusters.labels.tolist(), strict=True):
        if text:
            documents[label].append(text)
    # Words of two letters or more, without numbers, which are ids more often than words.
    words = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{2,}\b")
    try:
        counts = csr_array(words.fit_transform(" ".join(document) for document in documents))
    except ValueError:  # scikit-learn's answer to texts without any word
        return [None] * len(documents)
    frequency = np.asarray(counts.sum(axis=0)).ravel()
    mean_words = counts.sum() / len(documents)
    importance = np.log(1 + mean_words / frequency)
    vocabulary = words.get_feature_names_out()
    names: list[str | None] = []
    for start, stop in pairwise(counts.indptr.tolist()):
        columns = counts.indices[start:stop]
        scores = counts.data[start:stop] * importance[columns]
        # Of equally important words the first in the alphabet, as the vocabulary is sorted.
        best = np.lexsort((columns, -scores))[:NUM_WORDS]
        names.append(", ".join(vocabulary[columns[best]]) or None)
    return names
