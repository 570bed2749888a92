"""The map of a collection as the page reads it."""

from __future__ import annotations

import gzip
import hashlib
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clipx import strict_json
from clipx.files import stamp_of
from clipx.search.embedding_map import EmbeddingMap, map_file, open_map
from clipx.search.embeddings import Manifest
from clipx.serve.limits import Refused
from clipx.types import UserError

STEPS = 65_535  # of a coordinate; at the page's largest zoom, about a pixel each


@dataclass(frozen=True)
class MapContent:
    """points: see `packed`; labels, gzipped_labels: JSON; etag: changes when one of them does"""

    points: bytes
    labels: bytes
    gzipped_labels: bytes
    etag: str

    @classmethod
    def of(cls, drawn: EmbeddingMap) -> MapContent:
        # Points are not compressed: their low bytes are noise, of which gzip saves 4 %.
        points = packed(drawn.points)
        records = [asdict(label) for label in drawn.labels]
        labels = strict_json.dumps({"labels": records}).encode()
        digest = hashlib.sha256(points + labels).hexdigest()
        return cls(points, labels, gzip.compress(labels, mtime=0), f'"{digest[:32]}"')


def packed(points: np.ndarray) -> bytes:
    """x and y of each row, one after the other, as unsigned 16-bit integers, little-endian: 0 is
    -1, and 65,535 is 1.

    points: (N, 2) in [-1, 1]
    """
    steps = np.rint((points.astype(np.float64) + 1) / 2 * STEPS)
    return steps.astype("<u2").tobytes()


class ServedMap:
    """The map of a folder, read when it is first asked for and when its file has changed, so that
    a map may be made while the server runs."""

    def __init__(self, name: str, folder: Path, manifest: Manifest) -> None:
        self.name = name
        self._folder = folder
        self._manifest = manifest
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
        """Raises Refused where there is no map that can be used."""
        remedy = "run `clipx index DIR --map` with its folder"
        with self._lock:
            try:
                stamp = stamp_of(map_file(self._folder).stat())
            except OSError as error:
                raise Refused(404, f"{self.name} has no map; {remedy}") from error
            if stamp != self._stamp:
                self._stamp = stamp
                self._content = self._read()
        if self._content is None:
            raise Refused(404, f"the map of {self.name} cannot be used; {remedy}")
        return self._content

    def _read(self) -> MapContent | None:
        try:
            return MapContent.of(open_map(self._folder, self._manifest))
        except UserError as error:
            # It has a path, which is for the operator alone.
            print(f"clipx: {error}", file=sys.stderr, flush=True)
            return None
