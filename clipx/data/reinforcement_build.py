"""Run a teacher over augmented views of a corpus once, and store its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from clipx.data.augment import NUM_DRAWS, augment
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.decode import BadImage
from clipx.data.feature_build import Advance, Progress
from clipx.data.order import hash_of, uniforms
from clipx.data.reinforcement import MANIFEST, Manifest, caption_fields, read_manifest, shard_file
from clipx.data.sample import SampleError
from clipx.files import replacing
from clipx.types import TeacherInfo, UserError

SAMPLES_AT_ONCE = 64  # times the number of views, images of a forward pass
THREADS = 8  # that read, decode and augment
_DRAWS_KEY = int(hash_of(0x8E1F)[0])  # these draws depend on the sample's number alone


@dataclass(frozen=True)
class TeacherModel:
    """image: (B, 3, image_size, image_size) uint8 -> (B, D) of unit norm; text: of captions
    fit: resizing of an image without a random crop, see `Preprocessing.fit`
    """

    info: TeacherInfo
    image: Callable[[Tensor], Tensor]
    text: Callable[[Sequence[str]], Tensor]
    fit: Callable[[Tensor, int], Tensor]
    image_size: int


@dataclass(frozen=True)
class Build:
    """What all shards of a folder share."""

    folder: Path
    corpus: Corpus
    config: DataConfig
    teacher: TeacherModel
    num_views: int

    def open_folder(self) -> None:
        """Make the folder, or check that an earlier build of it was of the same. Called on one
        rank. Raises OSError, UserError."""
        manifest = Manifest(
            corpus=self.corpus.digest,
            teacher=self.teacher.info,
            augmentation=self.config.augmentation,
            caption_fields=caption_fields(self.config),
            num_views=self.num_views,
            image_size=self.teacher.image_size,
            exif_orientation=self.config.exif_orientation,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).exists():
            manifest.write(self.folder)
            return
        begun = read_manifest(self.folder)
        found = begun.differences(self.corpus, self.config)
        if begun.teacher.digest != self.teacher.info.digest:
            found.append(f"another teacher ({begun.teacher.source})")
        if begun.num_views != self.num_views:
            found.append(f"another number of views ({begun.num_views}, not {self.num_views})")
        if found:
            raise UserError(
                f"--out {self.folder} has embeddings of {' and of '.join(found)}; give another "
                "folder, or delete it"
            )

    def build_shards(self, progress: Progress, *, rank: int, world_size: int) -> None:
        """This rank's shards that are missing. Raises OSError, UserError."""
        shards = range(rank, self.corpus.num_shards, world_size)
        missing = [s for s in shards if not shard_file(self.folder, s).exists()]
        total = int(self.corpus.sizes[missing].sum())
        with progress("samples", total) as advance, ThreadPoolExecutor(THREADS) as pool:
            for shard in missing:
                self._build_shard(shard, pool, advance)

    def finish(self) -> Manifest:
        """Mark the folder complete. Called on one rank, after all shards. Raises OSError."""
        bad: dict[str, list[str]] = {}
        for shard in range(self.corpus.num_shards):
            with safe_open(shard_file(self.folder, shard), framework="numpy") as file:
                num_captions = np.diff(file.get_tensor("first"))
            keys = []
            for sample in np.flatnonzero(num_captions == 0).tolist():
                keys.append(self.corpus.key(shard, sample))
            if keys:
                bad[str(shard)] = keys
        manifest = replace(read_manifest(self.folder), complete=True, bad=bad)
        manifest.write(self.folder)
        return manifest

    def _build_shard(self, shard: int, pool: Executor, advance: Advance) -> None:
        size = int(self.corpus.sizes[shard])
        shape = (size, self.num_views, self.teacher.info.embed_dim)
        images = np.zeros(shape, dtype=np.float16)
        # (N, K, NUM_DRAWS), by the number of a sample in the corpus and that of its view
        numbers = int(self.corpus.first_sample[shard]) + np.arange(size)
        place = numbers[:, None] * self.num_views + np.arange(self.num_views)
        draws = uniforms(_DRAWS_KEY, place[..., None], NUM_DRAWS)
        texts: dict[str, int] = {}  # each distinct caption -> its row
        captions: list[int] = []
        first = [0]
        for start in range(0, size, SAMPLES_AT_ONCE):
            samples = range(start, min(start + SAMPLES_AT_ONCE, size))
            read = partial(self._read, shard, draws)
            views = []
            good = []
            for sample, found in zip(samples, pool.map(read, samples), strict=True):
                if found is not None:
                    views.append(found[0])
                    good.append(sample)
                    for text in found[1]:
                        captions.append(texts.setdefault(text, len(texts)))
                first.append(len(captions))
            if views:
                rows = self.teacher.image(torch.cat(views)).numpy()
                images[good] = rows.reshape(len(good), *shape[1:])
            advance(len(samples))
        embeddings = self.teacher.text(list(texts)).numpy().astype(np.float16)
        arrays = {
            "image": images,
            "draws": draws,
            "text": embeddings,
            "caption": np.array(captions, dtype=np.int64),
            "first": np.array(first, dtype=np.int64),
        }
        with replacing(shard_file(self.folder, shard)) as temporary:
            save_file(arrays, temporary)

    def _read(self, shard: int, draws: np.ndarray, sample: int) -> tuple[Tensor, list[str]] | None:
        """(views (K, 3, S, S) uint8, captions); None for a sample that cannot be used. Raises
        OSError where the shard cannot be read, which may pass."""
        teacher = self.teacher
        size = teacher.image_size
        try:
            found = self.corpus.read(shard, sample)
            pixels = self.config.pixels(found.images[0])
        except (SampleError, BadImage):
            return None
        views = torch.empty((self.num_views, 3, size, size), dtype=torch.uint8)
        augmentation = self.config.augmentation
        for out, of_view in zip(views, draws[sample], strict=True):
            augment(pixels, size, augmentation, of_view, out=out, fit=teacher.fit)
        return views, found.captions[0].texts
