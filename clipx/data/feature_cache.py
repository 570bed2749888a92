"""What locked towers make of a corpus: training reads features instead of pictures and words (LiT,
arXiv:2111.07991).

folder/
    images-00003.npy     features of the pictures of shard 3, (samples, ...) float16
    captions-00003.json  their captions; none of a sample that cannot be used
    texts-00000.npy      features of the corpus's first distinct captions, (texts, ...) float16
    meta.json            what the files were made from; written last

A file is there whole or not at all: a build that was stopped goes on with what is missing, and
ranks build different files. So are parts of a file that is not done yet, such as
`images-00003.part-00000.npy`, which are removed once it is. The folder's name is a digest of the
corpus, the trunks and what they are given, so features of anything else are never read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus, Sample
from clipx.data.tokenizers import Tokenizer
from clipx.files import write_whole

TEXTS_PER_FILE = 8192


@dataclass(frozen=True)
class Trunks:
    """The locked halves of both towers.

    fit: (3, H, W) uint8 -> (3, image_size, image_size) uint8
    image: (B, 3, H, W) uint8 -> (B, ...) features; text: (B, T) int64 -> (B, ...) features
    digest: of their weights and of everything else that their features depend on
    """

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor], Tensor]
    fit: Callable[[Tensor], Tensor]
    image_size: int
    tokenizer: Tokenizer
    context_length: int
    pad_to: int | None
    digest: str


class FeatureCache:
    """The features of one corpus by one pair of trunks, below `root`."""

    def __init__(self, root: Path, corpus: Corpus, trunks: Trunks, config: DataConfig) -> None:
        told = [corpus.digest, trunks.digest, config.caption_field, config.max_image_pixels]
        self.digest = hashlib.sha1(repr(told).encode()).hexdigest()
        self.folder = root / self.digest[:16]
        self.corpus, self.trunks, self.config = corpus, trunks, config

    @property
    def complete(self) -> bool:
        return (self.folder / "meta.json").exists()

    def finish(self) -> None:
        """Once all ranks have built all files. Raises OSError."""
        meta = {"digest": self.digest, "samples": self.corpus.num_samples}
        write_whole(self.folder / "meta.json", json.dumps(meta, indent=2).encode())

    def pixels(self, sample: Sample) -> Tensor:
        """(3, image_size, image_size) uint8. Raises BadImage."""
        pixels = self.config.decode(sample.image)
        return self.trunks.fit(pixels)

    def save_images(self, shard: int, features: np.ndarray, captions: list[list[str]]) -> None:
        """All samples of a shard. Raises OSError."""
        _save(self.image_file(shard), features)
        write_whole(self.caption_file(shard), json.dumps(captions).encode())

    def save_texts(self, file: int, features: np.ndarray) -> None:
        """TEXTS_PER_FILE distinct captions, or the last of them. Raises OSError."""
        _save(self.text_file(file), features)

    def image_part(self, shard: int, number: int) -> tuple[np.ndarray, list[list[str]]] | None:
        """What `save_image_part` has kept, or None."""
        features = _load(_part(self.image_file(shard), number))
        try:
            captions = json.loads(_part(self.caption_file(shard), number).read_bytes())
        except (OSError, ValueError):
            return None
        return None if features is None else (features, captions)

    def save_image_part(
        self, shard: int, number: int, features: np.ndarray, captions: list[list[str]]
    ) -> None:
        """Some samples of a shard that is not done yet. Raises OSError."""
        _save(_part(self.image_file(shard), number), features)
        write_whole(_part(self.caption_file(shard), number), json.dumps(captions).encode())

    def text_part(self, file: int, number: int) -> np.ndarray | None:
        """What `save_text_part` has kept, or None."""
        return _load(_part(self.text_file(file), number))

    def save_text_part(self, file: int, number: int, features: np.ndarray) -> None:
        """Some captions of a file that is not done yet. Raises OSError."""
        _save(_part(self.text_file(file), number), features)

    def remove_parts(self, *files: Path) -> None:
        """Remove the parts of files that are done. Raises OSError."""
        for file in files:
            for part in self.folder.glob(f"{file.stem}.part-*{file.suffix}"):
                part.unlink(missing_ok=True)

    def texts(self) -> Texts:
        """The captions of the whole corpus, once all images are built."""
        shards = range(self.corpus.num_shards)
        return Texts.of(c for s in shards for c in json.loads(self.caption_file(s).read_bytes()))

    def read_images(self, shard: np.ndarray, sample: np.ndarray) -> Tensor:
        """(B, ...) float32 features of these samples."""
        return _gather(self.image_file, shard, sample)

    def read_texts(self, text: np.ndarray) -> Tensor:
        """(B, ...) float32 features of these distinct captions."""
        return _gather(self.text_file, text // TEXTS_PER_FILE, text % TEXTS_PER_FILE)

    def image_file(self, shard: int) -> Path:
        return self.folder / f"images-{shard:05d}.npy"

    def caption_file(self, shard: int) -> Path:
        return self.folder / f"captions-{shard:05d}.json"

    def text_file(self, file: int) -> Path:
        return self.folder / f"texts-{file:05d}.npy"


@dataclass(frozen=True)
class Texts:
    """The captions of N samples, each different one once.

    ids: places in `distinct` of the captions of all samples, end to end
    first: (N + 1,) where in `ids` those of a sample begin
    """

    distinct: list[str]
    ids: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, captions: Iterable[list[str]]) -> Texts:
        place: dict[str, int] = {}
        ids: list[int] = []
        first = [0]
        for texts in captions:
            ids += [place.setdefault(text, len(place)) for text in texts]
            first.append(len(ids))
        return cls(list(place), np.array(ids, dtype=np.int64), np.array(first, dtype=np.int64))

    def draw(self, sample: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Places in `distinct` of one caption of each sample.

        sample: (B,) place among all samples; draws: (B,) in [0, 1)
        """
        count = self.first[sample + 1] - self.first[sample]
        return self.ids[self.first[sample] + (draws * count).astype(np.int64)]


def _gather(path: Callable[[int], Path], file: np.ndarray, row: np.ndarray) -> Tensor:
    """(B, ...) float32: row `row[i]` of the array in `path(file[i])`."""
    parts = [
        (here := np.flatnonzero(file == f), _mapped(path(f))[row[here]]) for f in np.unique(file)
    ]
    out = np.empty((len(file), *parts[0][1].shape[1:]), dtype=np.float32)
    for here, values in parts:
        out[here] = values
    return torch.from_numpy(out)


def _part(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.part-{number:05d}{file.suffix}")


def _load(path: Path) -> np.ndarray | None:
    """None where there is no such array."""
    try:
        return np.load(path)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=512)
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_whole(path, buffer.getvalue())
