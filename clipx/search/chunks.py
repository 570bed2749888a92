"""Samples of a corpus, read, decoded and resized in worker processes, with their metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipx.data.captions import CaptionFields
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS, Raw, SampleError
from clipx.embed import Encoder
from clipx.search.embeddings import COLUMNS
from clipx.search.parts import Part

CHUNK = 256  # samples that a worker reads, and the towers embed, at a time
NO_COLUMNS = ("json", "txt")


@dataclass(frozen=True)
class Chunk:
    """Samples first ... stop - 1 of a part, read.

    pixels: (n, 3, S, S) uint8 of the usable ones, as the model takes them
    rows: their metadata; bad: records of the others
    """

    part: int
    stop: int
    pixels: Tensor
    rows: list[dict[str, Any]]
    bad: list[dict[str, Any]]


class ChunkReader:
    """`reader[k]` is the k-th chunk of some parts."""

    def __init__(
        self,
        config: DataConfig,
        corpus: Corpus,
        fields: CaptionFields,
        encoder: Encoder,
        parts: list[Part],
    ) -> None:
        self.config = config
        self.corpus = corpus
        self.fields = fields
        self.fit = encoder.fit
        self.image_size = encoder.image_size
        self.chunks: list[tuple[Part, int, int]] = []
        for part in parts:
            for first in range(part.first, part.stop, CHUNK):
                self.chunks.append((part, first, min(part.stop, first + CHUNK)))

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Chunk:
        part, first, stop = self.chunks[number]
        images = []
        rows = []
        bad = []
        for sample in range(first, stop):
            try:
                raw = self.corpus.read_raw(part.shard, sample)
                pixels = self.config.pixels(raw.image)
                images.append(self.fit(pixels))
                rows.append(self._row(raw, part.shard, sample, pixels))
            except BAD_SAMPLE_ERRORS as error:
                bad.append(self.corpus.bad_sample(-1, part.shard, sample, error).record())
        size = self.image_size
        stacked = torch.stack(images) if images else torch.empty((0, 3, size, size))
        return Chunk(part.number, stop, stacked.to(torch.uint8), rows, bad)

    def _row(self, raw: Raw, shard: int, sample: int, pixels: Tensor) -> dict[str, Any]:
        try:
            caption = self.fields.of(raw).texts[0]
        except SampleError:
            caption = None
        own = dict(raw.text)
        try:
            own |= raw.json_fields
        except SampleError:  # a .json member that does not parse costs its fields, not the sample
            own.pop("json", None)
        row = {
            "key": raw.key,
            "caption": caption,
            "shard": self.corpus.name(shard),
            "source_shard": shard,
            "sample": sample,
            "width": pixels.shape[2],
            "height": pixels.shape[1],
        }
        for name, value in own.items():
            if name not in NO_COLUMNS:
                # img2dataset's own width and height are those of the original.
                row[f"own_{name}" if name in COLUMNS else name] = _plain(value)
        return row


def _plain(value: Any) -> Any:
    """A value for a column: a number, a text, or JSON of anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)
