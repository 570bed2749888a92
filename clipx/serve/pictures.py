"""The pictures of a corpus, read again by the place that the metadata of a sample names."""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import Image, features

from clipx import config as configs
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.search.embeddings import Manifest
from clipx.serve.limits import Refused
from clipx.types import UserError

QUALITY = 85


class Pictures:
    """corpus: None where it cannot be opened; fault: why"""

    def __init__(self, config: DataConfig, corpus: Corpus | None, fault: str = "") -> None:
        self.config = config
        self.corpus = corpus
        self.fault = fault
        # Pillow may be built without WebP.
        self.format = "WEBP" if features.check("webp") else "JPEG"

    @classmethod
    def open(cls, manifest: Manifest) -> Pictures:
        """By the settings in the manifest. A corpus that is gone leaves a page without pictures.
        Raises UserError for settings that are not valid."""
        config = configs.build(DataConfig, manifest.data, where="data in manifest.json")
        try:
            sources = config.open_sources()
            return cls(config, config.corpus(sources, seed=0, needs_captions=False))
        except (UserError, OSError) as error:
            return cls(config, None, str(error))

    @property
    def media_type(self) -> str:
        return f"image/{self.format.lower()}"

    def thumbnail(self, metadata: dict[str, Any], size: int) -> bytes:
        """The picture, encoded, with sides of at most `size` pixels. Raises Refused.

        metadata: of the sample
        """
        image = self._read(metadata)
        image.thumbnail((size, size))  # never enlarges
        buffer = io.BytesIO()
        image.save(buffer, self.format, quality=QUALITY)
        return buffer.getvalue()

    def _read(self, metadata: dict[str, Any]) -> Image.Image:
        if self.corpus is None:
            raise Refused(404, "the corpus of these embeddings cannot be opened any more")
        key = metadata["key"]
        shard = metadata["source_shard"]
        sample = metadata["sample"]
        sizes = self.corpus.sizes
        if shard >= len(sizes) or sample >= sizes[shard]:
            raise Refused(404, f"the corpus has no sample {key} any more")
        try:
            raw = self.corpus.read_raw(shard, sample)
            if raw.key != key:
                raise Refused(404, f"the corpus has changed: {key} is no longer in its place")
            pixels = self.config.pixels(raw.image)
        except BAD_SAMPLE_ERRORS as error:
            # Its text may have a path, which is for the operator alone.
            print(f"clipx: picture {key}: {error}", file=sys.stderr, flush=True)
            name = type(error).__name__
            raise Refused(404, f"the picture of {key} cannot be read any more: {name}") from error
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
