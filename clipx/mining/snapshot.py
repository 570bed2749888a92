"""A corpus as a model sees it: an embedding of each picture and of each distinct caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.data.workers import from_workers
from clipx.types import ImageTextEncoder, UserError

_CHUNK = 256  # samples that a worker reads at a time


@dataclass(frozen=True)
class Snapshot:
    """The corpus as a model sees it.

    image: (N, D) float32 of unit norm, zeros for a sample that cannot be used
    usable: (N,) bool
    caption: (N,) int64 number of the sample's caption among the distinct ones
    text: (C, D) of each distinct caption
    first_sample: (C,) int64 number of the first usable sample that has it
    """

    image: Tensor
    usable: Tensor
    caption: Tensor
    text: Tensor
    first_sample: Tensor


def take_snapshot(
    encoder: ImageTextEncoder,
    config: DataConfig,
    corpus: Corpus,
    *,
    workers: int,
    advance: Callable[[int], None],
) -> Snapshot:
    """Embed all samples. Raises UserError, and EmbeddingError for a damaged model.

    advance: called with the number of samples done
    """
    total = int(corpus.sizes.sum())
    texts: dict[str, int] = {}  # distinct captions, in the order of the corpus
    first_sample: list[int] = []
    caption = torch.zeros(total, dtype=torch.int64)
    usable = torch.zeros(total, dtype=torch.bool)
    parts = []
    start = 0
    chunks = _Chunks(encoder, config, corpus)
    for chunk in from_workers(chunks.__getitem__, range(len(chunks)), workers):
        if isinstance(chunk, UserError):
            raise chunk
        pixels, captions = chunk
        good = []
        for row, text in enumerate(captions):
            if text is None:
                continue
            good.append(row)
            usable[start + row] = True
            if text not in texts:
                texts[text] = len(texts)
                first_sample.append(start + row)
            caption[start + row] = texts[text]
        # Embeddings of blank pictures would be no worse, but a tower may refuse an empty batch.
        if good:
            rows = encoder.encode_image(pixels[good])
            part = rows.new_zeros(len(captions), rows.shape[1])
            part[good] = rows
            parts.append((start, part))
        start += len(captions)
        advance(len(captions))
    if len(texts) < 2:
        raise UserError(
            f"the corpus has {len(texts)} distinct captions in {int(usable.sum()):,} usable "
            "samples; negatives need at least 2 (`clipx data verify` lists bad samples)"
        )
    image = parts[0][1].new_zeros(total, parts[0][1].shape[1])
    for first, part in parts:
        image[first : first + len(part)] = part
    text = encoder.encode_text(list(texts))
    return Snapshot(image, usable, caption, text, torch.tensor(first_sample))


class _Chunks:
    """Item n has the n-th samples of the corpus: (n, 3, H, W) uint8 as the model takes them, and
    their captions, None for a sample that cannot be used."""

    def __init__(self, encoder: ImageTextEncoder, config: DataConfig, corpus: Corpus) -> None:
        self.fit = encoder.fit
        self.image_size = encoder.image_size
        self.config = config
        self.corpus = corpus
        self.total = int(corpus.sizes.sum())

    def __len__(self) -> int:
        return -(-self.total // _CHUNK)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str | None]]:
        numbers = range(index * _CHUNK, min(self.total, (index + 1) * _CHUNK))
        size = self.image_size
        pixels = torch.zeros((len(numbers), 3, size, size), dtype=torch.uint8)
        captions: list[str | None] = []
        for row, number in enumerate(numbers):
            shard, sample = self.corpus.place_of(number)
            try:
                found = self.corpus.read(shard, sample)
                pixels[row] = self.fit(self.config.pixels(found.images[0]))
                captions.append(found.captions[0].texts[0])
            except BAD_SAMPLE_ERRORS:
                captions.append(None)
        return pixels, captions
