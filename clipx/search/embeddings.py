"""Embeddings of a corpus on disk, in the layout of clip-retrieval, so that its tools and
embedding-reader read them.

folder/
    img_emb/img_emb_00.npy        (n, D) of the part's samples
    text_emb/text_emb_00.npy      of their captions, zeros for a sample without one; no folder for
                                  a corpus without captions
    metadata/metadata_00.parquet  a row for each sample, with the columns of COLUMNS and the user's
    quarantine/quarantine_00.jsonl samples that could not be embedded; no file if there are none
    manifest.json                 the model, the corpus and the counts

A part is up to `part_size` samples of one shard. Each file is atomic and metadata is written last,
so a part with metadata is complete, and a build that was stopped continues with the others. The
bytes depend on the model, the corpus and the settings alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from clipx.config_diff import short
from clipx.embed import Encoder
from clipx.files import write_whole
from clipx.types import UserError

Modality = Literal["image", "text"]
FORMAT = 1
MANIFEST = "manifest.json"
GROWING = ("data", "corpus_digest", "num_parts", "num_samples", "num_embedded", "num_bad")
"""Fields of a manifest that differ when a corpus has more shards at its end."""
_NO_DIFFERENCE = ("model", "num_embedded", "num_bad", "earlier")
COLUMNS = ("key", "caption", "shard", "source_shard", "sample", "width", "height")
"""key: of the sample; caption: the first, or null; shard: its file; source_shard, sample: its
number of the shard and in it, by which the picture is read again; width, height: of the picture"""


@dataclass(frozen=True)
class Manifest:
    """What embeddings were made from, and how many there are.

    model: as `clipx eval` takes it; model_digest: of all that its embeddings depend on
    scale: the learned inverse temperature (exp of logit_scale), by which cosines become logits
    precision: of the towers; dtype: of the files
    data: the settings of the corpus, by which pictures are read again
    num_samples: of the corpus; num_embedded, num_bad: once complete, else null
    earlier: the corpus before each time that it has grown, from which all rows are still there
    """

    model: str
    model_digest: str
    embed_dim: int
    image_size: int
    scale: float
    precision: str
    dtype: str
    data: dict[str, Any]
    corpus_digest: str
    part_size: int
    num_parts: int
    num_samples: int
    has_texts: bool
    num_embedded: int | None = None
    num_bad: int | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    @property
    def is_complete(self) -> bool:
        return self.num_embedded is not None

    @property
    def exif_orientation(self) -> bool:
        """Whether the pictures were turned by their EXIF tag; those of a query are read alike."""
        return self.data["exif_orientation"]

    def differences(self, other: Manifest) -> dict[str, tuple[Any, Any]]:
        """Name -> (here, there) of what makes other embeddings. A model that was moved is the
        same."""
        found = {}
        for name, value in vars(self).items():
            theirs = getattr(other, name)
            if value != theirs and name not in _NO_DIFFERENCE:
                found[name] = (value, theirs)
        return found

    def has_grown_from(self, old: Manifest) -> bool:
        """Whether these embeddings begin with the old ones, or are the same."""
        if not self.differences(old):
            return True
        return any(not replace(self, **past).differences(old) for past in self.earlier)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Manifest:
        """From the fields of a file or a collection. Raises TypeError for other ones."""
        fields = dict(fields)
        # Before 0.2 `scale` had the name of the parameter whose exponential it is.
        if "logit_scale" in fields:
            fields["scale"] = fields.pop("logit_scale")
        fields["data"] = _with_orientation(fields["data"])
        earlier = []
        for past in fields.get("earlier", []):
            earlier.append(past | {"data": _with_orientation(past["data"])})
        return cls(**fields | {"earlier": earlier})

    def grown(self, new: Manifest) -> Manifest:
        """The new manifest, which remembers this one."""
        earlier = list(self.earlier)
        if self.is_complete:  # an incomplete one has no index or map
            earlier.append({name: vars(self)[name] for name in GROWING})
        return replace(new, earlier=earlier)

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_whole(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")


def _with_orientation(data: dict[str, Any]) -> dict[str, Any]:
    """Settings of a corpus; those from before `exif_orientation` were of pixels as stored."""
    return {"exif_orientation": False} | data


def shown_differences(differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """A text for each of `Manifest.differences`, and for each setting of `data` by its own name."""
    pairs = dict(differences)
    there, here = pairs.pop("data", ({}, {}))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            pairs[f"data.{name}"] = (there.get(name), here.get(name))
    shown = []
    for name, (there, here) in pairs.items():
        shown.append(f"{name} {short(there)} there, {short(here)} here")
    return shown


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError if the folder has none that can be read."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text("utf-8"))
        if fields["format"] != FORMAT:
            raise UserError(
                f"{path} has format {fields['format']}, and this clipx knows {FORMAT}; embed the "
                "corpus again"
            )
        return Manifest.of(fields)
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST}: give the --out folder of a `clipx embed`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; embed the corpus again") from error


def open_complete(folder: Path) -> Manifest:
    """Raises UserError if the folder is not that of a `clipx embed` that has ended."""
    manifest = read_manifest(folder)
    if not manifest.is_complete:
        raise UserError(f"{folder} is not complete; run the same `clipx embed` to its end")
    return manifest


def model_digest(encoder: Encoder) -> str:
    """SHA-256 of the weights of both towers, the preprocessing and the tokenizer."""
    settings = [
        str(encoder.preprocessing),
        encoder.image_size,
        encoder.context_length,
        encoder.tokenizer.state,
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, tensor in encoder.model.state_dict().items():
        digest.update(name.encode())
        # As bytes, because NumPy has no bfloat16.
        values = tensor.detach().cpu().flatten().contiguous()
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
