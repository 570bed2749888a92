"""Embed a corpus, part by part: `clipx embed`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx.config import to_data
from clipx.data.captions import CaptionFields, probes
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.data.workers import from_workers
from clipx.embed import Encoder
from clipx.files import replacing, write_whole
from clipx.progress import ShowProgress
from clipx.search.chunks import Chunk, ChunkReader
from clipx.search.embeddings import Manifest, model_digest, read_manifest, shown_differences
from clipx.search.growth import has_more_shards
from clipx.search.metadata import import_parquet, write_table
from clipx.search.parts import Embeddings, Part, parts_of
from clipx.types import EmbeddingError, UserError

KEPT = (
    "shards",
    "sources",
    "caption_field",
    "max_image_pixels",
    "max_image_bytes",
    "exif_orientation",
)
"""Settings of the corpus in the manifest: others change neither embeddings nor pictures."""


@dataclass
class _Written:
    """What is known of a part so far."""

    images: list[Tensor] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)


class EmbedCorpus:
    """The embeddings of one corpus by one model, below `folder`.

    corpus: read without captions; part_size: samples of a part at most
    model: name of the encoder, by which it is loaded again
    dtype: of the files, float16 or float32
    """

    def __init__(
        self,
        folder: Path,
        corpus: Corpus,
        config: DataConfig,
        encoder: Encoder,
        *,
        model: str,
        part_size: int,
        dtype: str = "float16",
    ) -> None:
        self.corpus = corpus
        self.config = config
        self.encoder = encoder
        self.dtype = np.dtype(dtype)
        self.fields = CaptionFields.from_setting(config.caption_field)
        self.parts = parts_of(corpus, part_size)
        self.manifest = Manifest(
            model=model,
            model_digest=model_digest(encoder),
            embed_dim=encoder.embed_dim,
            image_size=encoder.image_size,
            scale=encoder.scale,
            precision=str(encoder.dtype).removeprefix("torch."),
            dtype=dtype,
            data={name: value for name, value in to_data(config).items() if name in KEPT},
            corpus_digest=corpus.digest,
            part_size=part_size,
            num_parts=len(self.parts),
            num_samples=int(corpus.sizes.sum()),
            has_texts=self._has_captions(),
        )
        self.files = Embeddings(folder, len(self.parts), has_texts=self.manifest.has_texts)

    def open_folder(self) -> None:
        """Write the manifest, or check that the folder has the same. Raises UserError and
        OSError."""
        import_parquet()  # refused before the first picture is read
        folder = self.files.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "manifest.json").exists():
            if any(folder.iterdir()):
                raise UserError(
                    f"--out {folder} has files, but no manifest.json of a `clipx embed`; choose an "
                    "empty or a new folder"
                )
            self.manifest.write(folder)
            return
        old = read_manifest(folder)
        differences = old.differences(self.manifest)
        if differences and not has_more_shards(old, self.manifest, self.corpus):
            shown = "; ".join(shown_differences(differences))
            raise UserError(
                f"--out {folder} has embeddings of something else: {shown}; choose "
                "another folder, or delete it. A corpus may grow by shards that come after the "
                "others, which stay as they were"
            )
        self.manifest = replace(self.manifest, earlier=old.earlier)
        if differences:
            self.manifest = old.grown(self.manifest)
            # Not complete from here on, so that no reader meets names that are changing.
            self.manifest.write(folder)
        self.files.rename_parts()

    def build(self, progress: ShowProgress, *, rank: int = 0, world_size: int = 1) -> None:
        """Embed the parts that this rank has to, and that are missing. Raises UserError, OSError,
        and EmbeddingError for a damaged model."""
        todo = []
        for part in self.parts[rank::world_size]:
            if not self.files.is_done(part.number):
                todo.append(part)
        for name in ("img_emb", "metadata", *(["text_emb"] if self.manifest.has_texts else [])):
            (self.files.folder / name).mkdir(exist_ok=True)
        reader = ChunkReader(self.config, self.corpus, self.fields, self.encoder, todo)
        written = _Written()
        with progress("embedding samples", sum(map(len, todo))) as advance:
            chunks = from_workers(reader.__getitem__, range(len(reader)), self.config.workers)
            for chunk in chunks:
                if isinstance(chunk, UserError):
                    raise chunk
                if len(chunk.pixels):
                    written.images.append(self._embed_images(chunk))
                written.rows += chunk.rows
                written.bad += chunk.bad
                advance(len(chunk.rows) + len(chunk.bad))
                # Chunks come in order, so a part is complete with its last one.
                part = self.parts[chunk.part]
                if chunk.stop == part.stop:
                    self._write(part, written)
                    written = _Written()

    def finish(self) -> Manifest | None:
        """Write the counts if all parts are there; None if other ranks or tasks have to finish.
        Raises OSError."""
        _, pq = import_parquet()
        num_embedded = 0
        for part in self.parts:
            if not self.files.is_done(part.number):
                return None
            num_embedded += pq.read_metadata(self.files.metadata_file(part.number)).num_rows
        num_bad = self.manifest.num_samples - num_embedded
        manifest = replace(self.manifest, num_embedded=num_embedded, num_bad=num_bad)
        # Of processes that were killed. All parts are there, so no process is writing.
        for temporary in self.files.folder.glob("*/.*"):
            temporary.unlink(missing_ok=True)
        manifest.write(self.files.folder)
        return manifest

    def _write(self, part: Part, written: _Written) -> None:
        """Raises OSError."""
        empty = torch.empty(0, self.encoder.embed_dim)
        _save(self.files.image_file(part.number), torch.cat([empty, *written.images]), self.dtype)
        if self.manifest.has_texts:
            captions = [row["caption"] for row in written.rows]
            texts = self._embed_texts(captions)
            _save(self.files.text_file(part.number), texts, self.dtype)
        if written.bad:
            path = self.files.quarantine_file(part.number)
            path.parent.mkdir(exist_ok=True)
            lines = [json.dumps(record, ensure_ascii=False) for record in written.bad]
            write_whole(path, "\n".join(lines) + "\n")
        # Last: it marks the part as complete.
        write_table(self.files.metadata_file(part.number), written.rows)

    def _embed_images(self, chunk: Chunk) -> Tensor:
        try:
            return self.encoder.encode_image(chunk.pixels)
        except EmbeddingError as error:
            keys = ", ".join(str(chunk.rows[row]["key"]) for row in error.rows[:5])
            raise UserError(f"the model cannot embed {keys}: {error.reason}") from error

    def _embed_texts(self, captions: list[str | None]) -> Tensor:
        """(n, D), zeros for a sample without a caption."""
        # Each caption once, and in alphabetical order: on CPUs the words that captions of a batch
        # begin with are computed once.
        distinct = sorted({caption for caption in captions if caption is not None})
        place = {caption: number for number, caption in enumerate(distinct)}
        there = [row for row, caption in enumerate(captions) if caption is not None]
        out = torch.zeros(len(captions), self.encoder.embed_dim)
        if there:
            numbers = [place[str(captions[row])] for row in there]
            out[there] = self.encoder.encode_text(distinct)[numbers]
        return out

    def _has_captions(self) -> bool:
        """Whether any sample of a part of the corpus has a caption."""
        for place in probes(self.corpus, every_source=True):
            try:
                self.fields.of(self.corpus.read_raw(*place, images=()))
            except BAD_SAMPLE_ERRORS:
                continue
            return True
        return False


def _save(path: Path, rows: Tensor, dtype: np.dtype) -> None:
    with replacing(path) as temporary, temporary.open("wb") as opened:
        np.save(opened, rows.numpy().astype(dtype))
