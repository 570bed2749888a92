"""Search the embeddings of a corpus by text, by picture, or by several with signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipx import embed
from clipx.embed import Encoder, Picture
from clipx.search.embeddings import Modality, model_digest
from clipx.search.folder_store import FolderStore
from clipx.search.metadata import column_of
from clipx.search.qdrant_connection import is_url
from clipx.search.qdrant_store import QdrantStore
from clipx.search.recommend import Strategy, recommended
from clipx.search.store import Store
from clipx.search.vector_index import VectorIndex
from clipx.types import UserError


@dataclass(frozen=True)
class Term:
    """A part of a query: a text or a picture, near the results (sign 1) or far from them (-1)."""

    sign: Literal[1, -1]
    text: str | None = None
    image: Picture | None = None


@dataclass(frozen=True)
class Hit:
    """row: among all embeddings; score: what it is ranked by, in a search the cosine similarity;
    metadata: of the sample, by column"""

    row: int
    score: float
    metadata: dict[str, Any]


class Index:
    """The embeddings of a folder of `clipx embed`, searched by the index that `clipx index` made,
    or exactly without one; or those of a collection that `clipx index --to` has uploaded.

        index = Index.open("embeddings/demo")  # or "http://localhost:6333/demo"
        hits = index.search(text="a red car", k=5)
        hits = index.search(terms=[Term(1, text="a red car"), Term(-1, text="a toy")])
    """

    def __init__(self, store: Store, encoder: Encoder | None = None) -> None:
        self.store = store
        self.manifest = store.manifest
        self._encoder = encoder

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"Index({self.store.source}: {self.store.num_rows:,} rows, D = {manifest.embed_dim}, "
            f"{self.store.kind}, model {manifest.model})"
        )

    @classmethod
    def open(
        cls,
        source: Path | str,
        *,
        modality: Modality = "image",
        model: Encoder | None = None,
        exact: bool = False,
    ) -> Index:
        """Raises UserError.

        source: a folder, or the URL of a collection
        modality: whether images are found, or their captions
        model: that of the embeddings; None loads the one that the manifest names
        exact: without the index
        """
        store: Store
        if is_url(source):
            store = QdrantStore.open(str(source), modality, exact=exact)
        else:
            store = FolderStore.open(Path(source), modality, exact=exact)
        manifest = store.manifest
        if model is not None and model_digest(model) != manifest.model_digest:
            raise UserError(
                f"{source} was embedded by {manifest.model}, and {model.source} is another model"
            )
        return cls(store, model)

    @property
    def whole(self) -> FolderStore:
        """The folder, for what reads all its embeddings. Raises UserError for a collection."""
        if not isinstance(self.store, FolderStore):
            raise UserError(
                f"{self.store.source} is a collection, and this reads all embeddings: give the "
                "folder that was uploaded"
            )
        return self.store

    @property
    def folder(self) -> Path:
        """Of the embeddings. Raises UserError for a collection, as all of `whole`."""
        return self.whole.folder

    @property
    def rows(self) -> np.ndarray:
        """(N, D) of the embeddings, removed ones included."""
        return self.whole.rows

    @property
    def vectors(self) -> VectorIndex:
        """Of all rows; `kept` is False for removed ones."""
        return self.whole.index

    @property
    def kept(self) -> np.ndarray:
        """(n,) int64 rows that are not removed."""
        return np.flatnonzero(self.vectors.kept)

    @property
    def metadata(self) -> Any:
        """A pyarrow table of all rows."""
        return self.whole.table

    @property
    def encoder(self) -> Encoder:
        """The model of the embeddings, loaded when first needed. Raises UserError."""
        if self._encoder is None:
            source = self.manifest.model
            encoder = embed.load(source)
            if model_digest(encoder) != self.manifest.model_digest:
                raise UserError(
                    f"{source} has changed since {self.store.source} was embedded; give --model "
                    "with the checkpoint of that time, or embed again"
                )
            self._encoder = encoder
        return self._encoder

    def search(
        self,
        *,
        text: str | None = None,
        image: Picture | None = None,
        terms: Sequence[Term] = (),
        vector: Tensor | None = None,
        k: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The k nearest, best first. Raises UserError.

        text, image: queries with the sign 1, beside `terms`; vector: (D,), instead of all of them
        where: a condition on the metadata, see `clipx.search.filters`
        """
        if k < 1:
            raise UserError(f"k {k} is below 1")
        if vector is None:
            all_terms = list(terms)
            if text is not None:
                all_terms.append(Term(1, text=text))
            if image is not None:
                all_terms.append(Term(1, image=image))
            vector = self.embed(all_terms)
        return self.hits(self.nearest(vector, k, where=where))

    def recommend(
        self,
        *,
        likes: Sequence[Picture | int] = (),
        dislikes: Sequence[Picture | int] = (),
        strategy: Strategy = "average",
        k: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The k samples that examples recommend, best first, without the examples. Raises
        UserError.

        likes, dislikes: pictures, or integers for rows of the corpus
        strategy: `average` searches with the mean of the likes, moved away from that of the
            dislikes; `best` compares each sample with its most similar like and dislike, see
            `clipx.search.recommend`
        where: as for `search`
        """
        found = recommended(self, likes, dislikes, strategy=strategy, k=k, where=where)
        return self.hits(found)

    def row_of(self, key: str) -> int:
        """The row of the sample with a key. Raises UserError unless there is exactly one."""
        keys = column_of(self.metadata, "key").to_numpy()
        rows = np.flatnonzero(keys == key)
        if len(rows) == 0:
            raise UserError(f"{self.folder} has no sample with the key {key!r}")
        if len(rows) > 1:
            shown = ", ".join(map(str, rows[:5].tolist()))
            raise UserError(
                f"{self.folder} has {len(rows):,} samples with the key {key!r}, in rows {shown}; "
                "give the number of the row"
            )
        return int(rows[0])

    def nearest(
        self, vector: Tensor, k: int, *, where: str | None = None
    ) -> list[tuple[int, float]]:
        """(row, similarity) of the k nearest, best first. Raises UserError.

        vector: (D,); where: as for `search`
        """
        return self.store.nearest(F.normalize(vector.float(), dim=0), k, where=where)

    def hits(self, found: Sequence[tuple[int, float]]) -> list[Hit]:
        """One for each pair of `found`, (row, similarity), with its metadata. Raises UserError."""
        metadata = self.store.metadata([row for row, _ in found])
        hits = []
        for (row, score), values in zip(found, metadata, strict=True):
            hits.append(Hit(row, score, values))
        return hits

    def embed(self, terms: Sequence[Term]) -> Tensor:
        """(D,) the sum of the terms' unit vectors with their signs, of unit norm. Raises
        UserError."""
        if not terms:
            raise UserError("a query needs a text or an image")
        rows = []
        turns = self.manifest.exif_orientation
        for term in terms:
            if term.text is not None:
                rows.append(self.encoder.encode_text(term.text)[0])
            else:
                assert term.image is not None, "a term has a text or an image"
                rows.append(self.encoder.encode_image(term.image, exif_orientation=turns)[0])
        return signed_sum([term.sign for term in terms], rows)

    def metadata_of(self, row: int) -> dict[str, Any]:
        """Columns that the sample in a `row` has. Raises UserError."""
        return self.store.metadata([row])[0]


def signed_sum(signs: Sequence[int], rows: Sequence[Tensor]) -> Tensor:
    """(D,) of unit norm: the query of several (D,) unit vectors. Raises UserError."""
    total = torch.zeros(len(rows[0]))
    for sign, row in zip(signs, rows, strict=True):
        total += sign * row
    if total.norm() < 1e-6:
        raise UserError("the parts of this query cancel each other out; change one")
    return F.normalize(total, dim=0)
