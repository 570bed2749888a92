"""The embeddings of one corpus as the server uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clipx.embed import Encoder
from clipx.search.embeddings import Modality
from clipx.search.folder_store import FolderStore
from clipx.search.query import Hit, Index, signed_sum
from clipx.serve.batching import Batcher
from clipx.serve.limits import Refused
from clipx.serve.pictures import Pictures
from clipx.serve.served_map import ServedMap

FIRST_DEPTH = 250
DEPTH_FACTOR = 5


@dataclass(frozen=True)
class QueryTerm:
    """A part of a query that is near (sign 1) or far (sign -1). Of text, row and pixels one is set.

    row: of a sample whose picture is meant; pixels: (3, S, S) uint8, as `Batcher.fit` returns them
    """

    sign: int
    text: str | None = None
    row: int | None = None
    pixels: Tensor | None = None


class Collection:
    """images, texts: indices of the same samples; texts is None for a corpus without captions"""

    def __init__(
        self, name: str, images: Index, texts: Index | None, batcher: Batcher, pictures: Pictures
    ) -> None:
        self.name = name
        self.images = images
        self.texts = texts
        self.batcher = batcher
        self.pictures = pictures
        self.map = ServedMap(name, images.store)
        self.num_rows = images.store.num_rows

    def embed(self, terms: Sequence[QueryTerm]) -> Tensor:
        """(D,) the sum of unit vectors with their signs. Raises Refused and UserError."""
        texts = [term.text for term in terms if term.text is not None]
        pixels = [term.pixels for term in terms if term.pixels is not None]
        # Both are submitted before either is awaited.
        text_result = self.batcher.submit("text", texts) if texts else None
        image_result = self.batcher.submit("image", pixels) if pixels else None
        text_rows = iter(text_result.result() if text_result is not None else ())
        image_rows = iter(image_result.result() if image_result is not None else ())
        vectors = []
        for term in terms:
            if term.text is not None:
                vectors.append(next(text_rows))
            elif term.pixels is not None:
                vectors.append(next(image_rows))
            else:
                assert term.row is not None, "a term has a text, a picture or a row"
                vectors.append(self.image_vector(term.row))
        return signed_sum([term.sign for term in terms], vectors)

    def image_vector(self, row: int) -> Tensor:
        """(D,) of a sample's picture. Raises Refused."""
        self.check_row(row)
        return self.images.store.vectors([row])[0]

    def thumbnail(self, row: int, size: int) -> bytes:
        """See `Pictures.thumbnail`. Raises Refused and UserError."""
        self.check_row(row)
        return self.pictures.thumbnail(self.images.metadata_of(row), size)

    def check_row(self, row: int) -> None:
        """Raises Refused for a row that is not there or was removed."""
        if not self.kept([row]):
            raise Refused(404, f"row {row} of {self.name} was removed")

    def kept(self, rows: Sequence[int]) -> list[int]:
        """The rows without removed ones. Raises Refused for numbers that no row has."""
        for row in rows:
            if not 0 <= row < self.num_rows:
                raise Refused(404, f"{self.name} has rows 0 to {self.num_rows - 1:,}, not {row}")
        missing = set(self.images.store.missing(rows))
        return [row for row in rows if row not in missing]

    def nearest(
        self, vector: Tensor, k: int, *, where: str | None = None, modality: Modality = "image"
    ) -> list[tuple[int, float]]:
        """(row, similarity) of the k nearest, best first. Raises Refused and UserError."""
        index = self.images if modality == "image" else self.texts
        if index is None:
            raise Refused(400, f"{self.name} has no captions to search; use modality image")
        return index.nearest(vector, k, where=where)

    def page(
        self,
        vector: Tensor,
        k: int,
        offset: int,
        *,
        where: str | None = None,
        modality: Modality = "image",
    ) -> tuple[list[Hit], bool]:
        """k results from `offset` on, and whether there are more. Raises Refused and UserError."""
        # An approximate index that looks for more finds other first results, and a page would
        # repeat or miss some. So all pages up to a depth are cut from the same search.
        last = offset + k
        depth = FIRST_DEPTH
        while depth <= last:  # one result more than the page shows that there are more
            depth *= DEPTH_FACTOR
        found = self.nearest(vector, depth, where=where, modality=modality)
        return self.images.hits(found[offset:last]), len(found) > last

    def describe(self) -> dict[str, Any]:
        """For the page and for programs: what can be searched, and the columns of filters."""
        manifest = self.images.manifest
        return {
            "name": self.name,
            "num_rows": self.num_rows,
            "model": manifest.model,
            "embed_dim": manifest.embed_dim,
            "scale": manifest.scale,
            "modalities": ["image"] if self.texts is None else ["image", "text"],
            "index": {"kind": self.images.store.kind},
            "has_pictures": self.pictures.corpus is not None,
            "has_map": self.map.exists,
            "columns": self.images.store.columns(),
        }


def open_collections(
    sources: Sequence[Path | str], model: Encoder | None = None
) -> list[Collection]:
    """Folders of `clipx embed` and URLs of collections, each under its name. Raises UserError.

    model: that of all sources; None loads the one that each was embedded by
    """
    collections: list[Collection] = []
    batchers: dict[str, Batcher] = {}  # by the digest of the model
    names: Counter[str] = Counter()
    for source in sources:
        images = Index.open(source, model=model)
        digest = images.manifest.model_digest
        if digest not in batchers:
            encoder = images.encoder
            # Once, here: an encoder switches to evaluation and back, and threads would interfere.
            encoder.model.eval()
            batchers[digest] = Batcher(encoder)
        store = images.store
        texts = None
        if isinstance(store, FolderStore) and images.manifest.has_texts:
            captions = FolderStore.open(Path(source), "text")
            captions.table = store.table  # equal, and held once
            texts = Index(captions)
        name = store.name
        names[name] += 1
        if names[name] > 1:
            name = f"{name}-{names[name]}"
        pictures = Pictures.open(images.manifest)
        collections.append(Collection(name, images, texts, batchers[digest], pictures))
    return collections
