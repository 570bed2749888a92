"""The pictures of a corpus, read again by the place that the metadata of a sample names."""

from __future__ import annotations

from typing import Any

from PIL import Image

from clipx import config as configs
from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS
from clipx.search.embeddings import Manifest
from clipx.types import UserError


class PictureGone(Exception):
    """A picture that cannot be read again. detail: the error, which may have a path of this machine
    and is not for clients of a server"""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class CorpusPictures:
    """corpus: None where it cannot be opened; fault: why"""

    def __init__(self, config: DataConfig, corpus: Corpus | None, fault: str = "") -> None:
        self.config = config
        self.corpus = corpus
        self.fault = fault

    @classmethod
    def open(cls, manifest: Manifest) -> CorpusPictures:
        """By the settings in the manifest. Raises UserError for settings that are not valid."""
        config = configs.build(DataConfig, manifest.data, where="data in manifest.json")
        try:
            sources = config.open_sources()
            return cls(config, config.corpus(sources, seed=0, needs_captions=False))
        except (UserError, OSError) as error:
            return cls(config, None, str(error))

    def read(self, metadata: dict[str, Any]) -> Image.Image:
        """RGB, at its own size. Raises PictureGone.

        metadata: of the sample
        """
        if self.corpus is None:
            raise PictureGone("the corpus of these embeddings cannot be opened any more")
        key = metadata["key"]
        shard = metadata["source_shard"]
        sample = metadata["sample"]
        sizes = self.corpus.sizes
        if shard >= len(sizes) or sample >= sizes[shard]:
            raise PictureGone(f"the corpus has no sample {key} any more")
        try:
            raw = self.corpus.read_raw(shard, sample)
            if raw.key != key:
                raise PictureGone(f"the corpus has changed: {key} is no longer in its place")
            pixels = self.config.pixels(raw.image)
        except BAD_SAMPLE_ERRORS as error:
            name = type(error).__name__
            message = f"the picture of {key} cannot be read any more: {name}"
            raise PictureGone(message, str(error)) from error
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
