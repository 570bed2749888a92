"""A teacher's embeddings beside a corpus, with the augmentations that it saw, so that a student
learns from it without running it: MobileCLIP's dataset reinforcement (arXiv:2311.17049).

folder/
    manifest.json             what the files were made from, and whether all of them are there
    shard-00003.safetensors   shard 3 of the corpus, N samples with M captions, U of them different
        image    (N, K, D) float16, the embeddings of K views of each image
        draws    (N, K, NUM_DRAWS) float64, by which `augment` makes these views
        text     (U, D) float16, the embeddings of captions
        caption  (M,) int64, the rows of `text` of all samples' captions, end to end
        first    (N + 1,) int64, where in `caption` those of a sample begin

Every file is atomic. A sample that could not be read has no captions; its key is in the manifest,
and training replaces it unread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipx.data.augment import Augmentation
from clipx.data.captions import Caption
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus, Sample, Used
from clipx.data.order import hash_of, uniforms
from clipx.data.reader import Reader
from clipx.files import write_whole
from clipx.types import TeacherInfo, UserError

MANIFEST = "manifest.json"
_VIEW_KEY = 0x51E3  # separates the draw of a view from the other draws of a position
T = TypeVar("T")


@dataclass(frozen=True)
class Manifest:
    """What a folder was made from.

    corpus: digest; caption_fields: names in their order; num_views: of each image
    bad: shard -> keys of its samples without embeddings; JSON has texts as keys
    """

    corpus: str
    teacher: TeacherInfo
    augmentation: Augmentation
    caption_fields: list[str]
    num_views: int
    image_size: int
    exif_orientation: bool = False  # folders from before this setting have pixels as stored
    complete: bool = False
    bad: dict[str, list[str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_whole(folder / MANIFEST, json.dumps(asdict(self), indent=2))

    def differences(self, corpus: Corpus, config: DataConfig) -> list[str]:
        """What a run has otherwise, in words."""
        found = []
        if self.corpus != corpus.digest:
            found.append(f"another corpus ({self.corpus[:12]}, not {corpus.digest[:12]})")
        if self.augmentation != config.augmentation:
            found.append(f"another augmentation ({self.augmentation}, not {config.augmentation})")
        if self.exif_orientation != config.exif_orientation:
            there, here = self.exif_orientation, config.exif_orientation
            found.append(f"another data.exif_orientation ({there}, not {here})")
        fields = caption_fields(config)
        if self.caption_fields != fields:
            found.append(f"another data.caption_field ({self.caption_fields}, not {fields})")
        return found


def caption_fields(config: DataConfig) -> list[str]:
    names = config.caption_field
    return [names] if isinstance(names, str) else list(names)


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError."""
    path = folder / MANIFEST
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        augmentation: dict[str, Any] = {}
        for name, value in data["augmentation"].items():
            augmentation[name] = tuple(value) if isinstance(value, list) else value
        data["augmentation"] = Augmentation(**augmentation)
        data["teacher"] = TeacherInfo(**data["teacher"])
        return Manifest(**data)
    except FileNotFoundError as error:
        raise UserError(
            f"data.reinforced {folder} has no {MANIFEST}; make the folder by "
            "`clipx data reinforce CONFIG MODEL --out FOLDER`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete the folder, and make it again"
        ) from error


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


class Reinforcement:
    """The embeddings of a run's corpus. Raises UserError if the folder is of anything else."""

    def __init__(self, folder: Path, corpus: Corpus, config: DataConfig) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.seed = corpus.order.seed
        if differences := self.manifest.differences(corpus, config):
            raise UserError(
                f"data.reinforced {folder} is of {' and of '.join(differences)}; make one for this "
                "run by `clipx data reinforce`"
            )
        missing = [s for s in range(corpus.num_shards) if not shard_file(folder, s).exists()]
        if missing or not self.manifest.complete:
            raise UserError(
                f"data.reinforced {folder} lacks {len(missing)} of {corpus.num_shards} shards; "
                "complete it by the `clipx data reinforce` that began it"
            )
        if config.decode != "exact":
            raise UserError(
                f"data.decode {config.decode} gives other pixels than the teacher has seen; set "
                "data.decode=exact, or data.reinforced=null"
            )
        # Samples that the teacher could not embed are replaced, as if they could not be read here.
        skip = {shard: set(keys) for shard, keys in corpus.skip.items()}
        for shard, keys in self.manifest.bad.items():
            skip.setdefault(int(shard), set()).update(keys)
        corpus.skip = skip

    def rows(self, positions: np.ndarray) -> StoredRows:
        """positions: (B,) of a batch"""
        return StoredRows(self, positions)


class StoredRows:
    """The embeddings of a batch, collected while its samples are read in their order."""

    def __init__(self, reinforcement: Reinforcement, positions: np.ndarray) -> None:
        self._folder = reinforcement.folder
        seed = reinforcement.seed
        key = int(hash_of(seed, _VIEW_KEY)[0])
        view_draws = uniforms(key, positions[:, None], 1)[:, 0]
        self._view = (view_draws * reinforcement.manifest.num_views).astype(np.int64).tolist()
        # The draw of `Batches`, so that a run has the same captions with and without a teacher.
        self._caption_draw = uniforms(seed, positions[:, None], 1)[:, 0].tolist()
        self._images: list[np.ndarray] = []
        self._texts: list[np.ndarray] = []

    def use(
        self,
        reader: Reader,
        position: int,
        shard: int,
        sample: int,
        draws: np.ndarray,
        prepare: Callable[..., T],
    ) -> Used[T]:
        """As `Reader.use`, with the draws of a stored view in place of those of `prepare`."""
        row = len(self._images)
        # Which sample is used, and so which view is made, is known once it could be decoded.
        used = reader.use(position, shard, sample, draws, _keep)
        pixels, found = used.value
        stored = ShardRows.open(shard_file(self._folder, used.shard))
        caption_draw = self._caption_draw[row]
        text = stored.text_of(used.sample, found.captions[0], caption_draw)
        view = self._view[row]
        self._images.append(stored.row("image", used.sample)[view])
        self._texts.append(text)
        of_view = stored.row("draws", used.sample)[view]
        value = prepare(pixels, found, draws=np.concatenate([[caption_draw], of_view]))
        return Used(value, used.key, used.shard, used.sample, used.bad)

    def views(self) -> dict[str, Tensor]:
        """teacher_image and teacher_text, (B, D) float16"""
        return {
            "teacher_image": torch.from_numpy(np.stack(self._images)),
            "teacher_text": torch.from_numpy(np.stack(self._texts)),
        }


def _keep(pixels: Sequence[Tensor], found: Sample) -> tuple[Sequence[Tensor], Sample]:
    return pixels, found


class ShardRows:
    """One file of embeddings, read row by row."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self.path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} cannot be read: {error}; delete it, and make it again by the "
                "`clipx data reinforce` that made the folder"
            ) from error

    @staticmethod
    @lru_cache(maxsize=256)
    def open(path: Path) -> ShardRows:
        return ShardRows(path)

    def row(self, name: str, number: int) -> np.ndarray:
        return self._file.get_slice(name)[number : number + 1][0]

    def text_of(self, sample: int, caption: Caption, draw: float) -> np.ndarray:
        """(D,) float16, of the caption that `draw` chooses. Raises UserError."""
        first, stop = self._file.get_slice("first")[sample : sample + 2].tolist()
        texts = caption.texts
        if stop - first != len(texts):
            raise UserError(
                f"{self.path} has {stop - first} captions of sample {sample}, and the corpus "
                f"{len(texts)}; delete the folder, and make it again"
            )
        number = first + texts.index(caption.draw(draw))
        place = int(self._file.get_slice("caption")[number : number + 1][0])
        return self.row("text", place)
