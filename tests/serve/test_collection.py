"""Pages of results of an approximate index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch
from torch.nn import functional as F

from clipx.data.config import DataConfig
from clipx.search.corpus_pictures import CorpusPictures
from clipx.search.folder_store import FolderStore
from clipx.search.query import Index
from clipx.search.vector_index import VectorIndex, spec_of
from clipx.serve.batching import Batcher
from clipx.serve.collection import Collection
from clipx.serve.pictures import Pictures

NUM_ROWS = 4000


def test_pages_of_an_approximate_index_neither_repeat_nor_miss_results(index: Index) -> None:
    """Its results for a larger k begin otherwise."""
    width = index.manifest.embed_dim
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(NUM_ROWS, width, generator=generator), dim=1).numpy()
    vectors = VectorIndex.build(spec_of("ivf", NUM_ROWS, width, effort=4), rows)
    metadata = pa.table({"key": [str(row) for row in range(NUM_ROWS)]})
    manifest = replace(index.manifest, num_embedded=NUM_ROWS)
    store = FolderStore(Path(), manifest, rows, vectors, metadata)
    large = Index(store, index.encoder)
    pictures = Pictures(CorpusPictures(DataConfig(), None))
    collection = Collection("large", large, None, Batcher(index.encoder), pictures)
    query = torch.randn(width, generator=generator)
    whole, _ = collection.page(query, 240, 0)
    alone = [row for row, _ in collection.nearest(query, 40)]
    assert alone != [hit.row for hit in whole[:40]], "a smaller search finds others"
    paged = []
    for offset in range(0, 240, 40):
        hits, has_more = collection.page(query, 40, offset)
        assert has_more
        paged += hits
    assert paged == whole
    assert len({hit.row for hit in whole}) == 240
