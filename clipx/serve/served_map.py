"""The map of a collection as the page reads it."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from dataclasses import asdict, dataclass

import numpy as np

from clipx import strict_json
from clipx.files import stamp_of
from clipx.search.embedding_map import EmbeddingMap, map_file, open_map
from clipx.search.folder_store import FolderStore
from clipx.search.store import Store
from clipx.serve.limits import Refused
from clipx.types import UserError

STEPS = 65_535  # of a coordinate; at the page's largest zoom, about a pixel each
REMOVED = 65_535  # instead of either coordinate, of which the largest is one less


@dataclass(frozen=True)
class MapContent:
    """points: see `packed`; labels, gzipped_labels: JSON; etag: changes when one of them does"""

    points: bytes
    labels: bytes
    gzipped_labels: bytes
    etag: str

    @classmethod
    def of(cls, drawn: EmbeddingMap, kept: np.ndarray) -> MapContent:
        """kept: (N,) bool, False for removed pictures"""
        # Points are not compressed: their low bytes are noise, of which gzip saves 4 %.
        points = packed(drawn.points, kept)
        records = [asdict(label) for label in drawn.labels]
        labels = strict_json.dumps({"labels": records}).encode()
        digest = hashlib.sha256(points + labels).hexdigest()
        return cls(points, labels, gzip.compress(labels, mtime=0), f'"{digest[:32]}"')


def packed(points: np.ndarray, kept: np.ndarray) -> bytes:
    """x and y of each row, one after the other, as unsigned 16-bit integers, little-endian: 0 is
    -1, and 65,535 is 1. Coordinates end at 65,534, and removed pictures have 65,535 for both.

    points: (N, 2) in [-1, 1]; kept: (N,) bool
    """
    steps = np.rint((points.astype(np.float64) + 1) / 2 * STEPS)
    steps = np.minimum(steps, REMOVED - 1)
    steps[~kept] = REMOVED
    return steps.astype("<u2").tobytes()


class ServedMap:
    """The map of a folder, read when it is first asked for and when its file has changed, so that
    a map may be made while the server runs. Collections of Qdrant have none."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self._store = store
        self._lock = threading.Lock()
        self._stamp = ""
        self._content: MapContent | None = None

    @property
    def exists(self) -> bool:
        try:
            self.content()
        except Refused:
            return False
        return True

    def content(self) -> MapContent:
        """Raises Refused without a usable map."""
        if not isinstance(self._store, FolderStore):
            raise Refused(404, f"{self.name} is a collection of Qdrant, and maps are of folders")
        remedy = "run `clipx index DIR --map` with its folder"
        with self._lock:
            try:
                stamp = stamp_of(map_file(self._store.folder).stat())
            except OSError as error:
                raise Refused(404, f"{self.name} has no map; {remedy}") from error
            if stamp != self._stamp:
                self._stamp = stamp
                self._content = _read(self._store)
        if self._content is None:
            raise Refused(404, f"the map of {self.name} cannot be used; {remedy}")
        return self._content


def _read(store: FolderStore) -> MapContent | None:
    try:
        return MapContent.of(open_map(store.folder, store.manifest), store.index.kept)
    except UserError as error:
        # It has a path, which is for the operator alone.
        print(f"clipx: {error}", file=sys.stderr, flush=True)
        return None
