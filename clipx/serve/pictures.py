"""The pictures of a corpus as a page shows them."""

from __future__ import annotations

import io
import sys
from typing import Any

from PIL import features

from clipx.data.corpus import Corpus
from clipx.search.corpus_pictures import CorpusPictures, PictureGone
from clipx.search.embeddings import Manifest
from clipx.serve.limits import Refused

QUALITY = 85


class Pictures:
    def __init__(self, source: CorpusPictures) -> None:
        self.source = source
        # Pillow may be built without WebP.
        self.format = "WEBP" if features.check("webp") else "JPEG"

    @classmethod
    def open(cls, manifest: Manifest) -> Pictures:
        """A corpus that is gone leaves a page without pictures. Raises UserError for settings that
        are not valid."""
        return cls(CorpusPictures.open(manifest))

    @property
    def corpus(self) -> Corpus | None:
        return self.source.corpus

    @property
    def fault(self) -> str:
        return self.source.fault

    @property
    def media_type(self) -> str:
        return f"image/{self.format.lower()}"

    def thumbnail(self, metadata: dict[str, Any], size: int) -> bytes:
        """The picture, encoded, with sides of at most `size` pixels. Raises Refused.

        metadata: of the sample
        """
        try:
            image = self.source.read(metadata)
        except PictureGone as error:
            if error.detail:
                # It may have a path, which is for the operator alone.
                key = metadata["key"]
                print(f"clipx: picture {key}: {error.detail}", file=sys.stderr, flush=True)
            raise Refused(404, error.message) from error
        image.thumbnail((size, size))  # never enlarges
        buffer = io.BytesIO()
        image.save(buffer, self.format, quality=QUALITY)
        return buffer.getvalue()
