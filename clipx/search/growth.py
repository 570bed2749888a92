"""A corpus that has grown since it was embedded."""

from __future__ import annotations

from clipx.data.corpus import Corpus
from clipx.data.order import corpus_digest
from clipx.search.embeddings import Manifest

_SHARD_SETTINGS = ("shards", "sources")


def has_more_shards(old: Manifest, new: Manifest, corpus: Corpus) -> bool:
    """Whether a corpus begins with the shards of the old embeddings and only has others after them.

    new: of embeddings of this corpus
    """
    allowed = {"data", "corpus_digest", "num_parts", "num_samples"}
    if not set(old.differences(new)) <= allowed:
        return False
    for name in old.data.keys() | new.data.keys():
        if name not in _SHARD_SETTINGS and old.data.get(name) != new.data.get(name):
            return False
    shards = [(name, digest) for name, _, digest in corpus.table()]
    num_samples = 0
    for count, size in enumerate(corpus.sizes.tolist(), 1):
        num_samples += size
        if num_samples == old.num_samples and corpus_digest(shards[:count]) == old.corpus_digest:
            return True
    return False
