"""The settings of a corpus: where its pairs come from and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from clipx.config import component, config
from clipx.data.augment import Augmentation
from clipx.data.captions import CaptionFields
from clipx.data.concepts import By
from clipx.data.corpus import AnyOrder, Corpus
from clipx.data.decode import MAX_BYTES, MAX_PIXELS, Shrink
from clipx.data.decode import decode as decode_image
from clipx.data.grouped_order import GroupedOrder
from clipx.data.held_out import Part, parts_of
from clipx.data.labels import LabelField
from clipx.data.rand_augment import MAX_MAGNITUDE
from clipx.data.sample import PairFields, Source
from clipx.data.skip_list import read_skip_list
from clipx.data.source_order import check_shares, order_of
from clipx.data.sources import webdataset
from clipx.types import UserError

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Hue = Annotated[float, Field(ge=0, le=0.5)]


@config
class GroupConfig:
    """Each `size` consecutive rows of a global batch have samples of one concept. `streams` and
    `window` are without effect."""

    by: By = "label"
    """The concept: `label`, of data.label_field, or `caption`, the first text of a sample."""
    size: int = Field(default=2, ge=2, le=2**16)
    """Samples of a group."""


@config
class DataConfig:
    """One source (`shards`) or a mixture of several (`sources`)."""

    shards: str | list[str] | None = None
    """WebDataset tars: folder, glob, `{000..127}` range, list, URL, or several joined by `::`.
    Short for one source `webdataset` with default settings."""
    sources: dict[str, component("clipx.data.sources")] = Field(default_factory=dict)  # type: ignore[valid-type]
    """Instead of `shards`: several sources, each under a name that you choose."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of each source in the samples seen, in any unit; each source then has epochs of its
    own. Without weights, an epoch contains all samples of all sources."""
    repeat: dict[str, PositiveInt] = Field(default_factory=dict)
    """How often an epoch contains the samples of a source (1 where it is not named)."""
    workers: int = Field(default=1, ge=0, le=1024)
    """Processes per rank that read and decode; 0 reads in the training process. Never changes the
    batches."""
    streams: int = Field(default=64, ge=1, le=2**20)
    """Places of the corpus that each batch draws from. Part of the order: choose a multiple of the
    ranks."""
    window: int = Field(default=20_000, ge=1, le=2**31)
    """Samples that are shuffled together within a stream."""
    caption_field: str | dict[str, PositiveFloat] = "captions"
    """Field of the `.json` member (or column of a table) with one caption or a list, of which
    each visit draws one; or several fields and how often each is drawn. `txt` is the `.txt` member,
    which is also read where a sample has no such field."""
    label_field: str | None = None
    """Field of the `.json` member, `cls` for the `.cls` member, or column of a table, with an
    integer, a boolean or a text, which becomes a hash of 63 bits. For losses that use labels."""
    pair_images: tuple[str, str] | None = None
    """For `objective: siamese`, the two images of each sample: [a, b] for `a.jpg` and `b.jpg` of a
    shard, or two columns of a table. Captions are not read."""
    pair_texts: tuple[str, str] | None = None
    """For `objective: siamese`, the two texts of each sample: two fields of the `.json` member, [a,
    b] for `a.txt` and `b.txt` of a shard, or two columns of a table. Images are not read."""
    group: GroupConfig | None = None
    """Group samples of one concept in each batch, such as two of each class."""
    negatives: str | None = None
    """File of `clipx mine`: hard negatives of each sample, whose captions are further candidates of
    the images of a batch."""
    num_negatives: int | None = Field(default=None, ge=1)
    """How many of the mined negatives each visit draws; null: all of the file."""
    text_multiple: int = Field(default=1, ge=1, le=2**16)
    """Captions are padded to the longest of their batch, rounded up to a multiple of this. More
    than 1 saves compilations where graphs are compiled for each length."""
    crop: bool = True
    """Random crops. false: the model's own resizing, as in evaluation; crop_scale and crop_ratio
    are then without effect."""
    crop_scale: tuple[Share, Share] = (0.9, 1.0)
    """Share of the image's area that a random crop keeps."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width over height of a random crop."""
    flip: Probability = 0.0
    """Probability of a horizontal flip."""
    color_jitter: tuple[Strength, Strength, Strength, Hue] = (0.0, 0.0, 0.0, 0.0)
    """Strength of changes of brightness, contrast, saturation and hue."""
    color_jitter_prob: Probability = 0.0
    """Probability that colors change."""
    gray_scale_prob: Probability = 0.0
    """Probability that a picture becomes gray."""
    rand_augment: int = Field(default=0, ge=0, le=14)
    """Operations of RandAugment for each picture, drawn from 14; 0: none."""
    rand_augment_magnitude: float = Field(default=9.0, ge=0, le=MAX_MAGNITUDE)
    """Strength of all of them; 0: none."""
    blur_prob: Probability = 0.0
    """Probability that a picture is blurred."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the Gaussian's standard deviation, in pixels of the model's input."""
    erase_prob: Probability = 0.0
    """Probability that noise replaces a rectangle of 2 to 33 % of the area."""
    max_image_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Width times height. Larger images are quarantined without being decoded."""
    max_image_bytes: int = Field(default=MAX_BYTES, ge=1)
    """Bytes of the encoded picture; larger ones are quarantined too."""
    exif_orientation: bool = True
    """Turn each picture by its EXIF tag, as people see it. false: pixels as stored, as open_clip
    trains."""
    decode: Literal["exact", "scaled"] = "exact"
    """`scaled` decodes a JPEG at a half, a quarter or an eighth of its size where what is kept of
    it is that much larger than the model's input. Twice as fast for photographs, with other pixels
    (docs/data.md). Evaluation is always exact."""
    decoded_cache: str | None = None
    """Folder for decoded images, 4 bytes a pixel: each is decoded once and read in all later epochs
    and runs. For corpora that fit in memory, on a local disk. Never changes the batches."""
    reinforced: str | None = None
    """Folder of `clipx data reinforce` with a teacher's embeddings of this corpus: images are
    augmented as the teacher has seen them, and batches have its embeddings."""
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the samples of each source that the run does not train on. A hash of each sample's
    key decides, so that it stays the same when the corpus grows or is shuffled. Evaluators measure
    on it with `source: held_out`."""
    held_out_by: str | None = None
    """Field of the `.json` member, or column of a table, whose hash decides instead of the key's:
    `product_id` keeps all pictures of a product on one side."""
    max_bad_fraction: Probability = 0.1
    """Training stops when a larger share of samples (checked from 500 samples on) or of shards is
    bad."""
    skip: str | None = None
    """A list of known bad samples, written by `clipx data verify --out` or a run's
    quarantine.jsonl. They are replaced unread, by the same samples as if they had been read."""
    accept_changed_corpus: bool = False
    """Resume a run although its corpus has changed, at the same position of the new order."""

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation.of(self)

    @property
    def pair(self) -> PairFields | None:
        """Raises UserError."""
        if self.pair_images is not None and self.pair_texts is not None:
            raise UserError(
                "data.pair_images and data.pair_texts exclude each other; leave one out"
            )
        if self.pair_images is not None:
            return PairFields("images", self.pair_images)
        if self.pair_texts is not None:
            return PairFields("texts", self.pair_texts)
        return None

    def pixels(self, image: bytes, *, shrink: Shrink | None = None) -> Tensor:
        """(3, H, W) uint8. Raises BadImage."""
        return decode_image(
            image,
            max_pixels=self.max_image_pixels,
            max_bytes=self.max_image_bytes,
            shrink=shrink,
            exif_orientation=self.exif_orientation,
        )

    def open(self, *, seed: int, part: Part = "train") -> Corpus:
        """Open the corpus, in an order without groups. Raises UserError for a corpus without
        samples."""
        return self.corpus(self.open_sources(part), seed=seed)

    def open_sources(self, part: Part = "train") -> dict[str, Source]:
        """Read the tables of all sources. Raises UserError.

        part: the samples to train on, those of `held_out`, or all
        """
        if (self.shards is None) == (not self.sources):
            raise UserError("data needs either `shards` or `sources`, not both")
        configs = self.sources or {"shards": webdataset.Config(self.shards)}  # type: ignore[arg-type]
        check_shares(configs, self.weights, self.repeat)
        sources = {}
        for name in sorted(configs):  # the order of the samples must not depend on the YAML's
            source = configs[name].build()
            setting = f"data.sources.{name}" if self.sources else "data.shards"
            # A few bad shards cost a run their samples; many are a mistake, such as a wrong mount.
            unreadable = [fault for fault in source.faults if fault.is_whole_shard]
            if len(unreadable) > self.max_bad_fraction * len(source.sizes):
                lines = "\n".join(f"  {fault.shard}: {fault.message}" for fault in unreadable[:10])
                raise UserError(
                    f"{setting}: {len(unreadable)} of {len(source.sizes)} shards cannot be read, "
                    f"more than data.max_bad_fraction={self.max_bad_fraction}:\n{lines}"
                )
            if not source.sizes.sum():
                raise UserError(f"{setting}: all {len(source.sizes)} shards are empty")
            sources[name] = source
        return parts_of(sources, part, share=self.held_out, field=self.held_out_by)

    def corpus(
        self,
        sources: Mapping[str, Source],
        *,
        seed: int,
        needs_captions: bool = True,
        concepts: np.ndarray | None = None,
    ) -> Corpus:
        """Put open sources into an order. Raises UserError.

        concepts: of each sample, for an order that groups them, see `read_concepts`
        """
        if concepts is not None and self.group is not None:
            sizes = np.concatenate([source.sizes for source in sources.values()])
            shards = np.arange(len(sizes))
            order: AnyOrder = GroupedOrder(sizes, concepts, seed=seed, group_size=self.group.size)
        else:
            order, shards = order_of(
                sources,
                seed=seed,
                streams=self.streams,
                window=self.window,
                weights=self.weights,
                repeat=self.repeat,
            )
        pair = self.pair
        fields = None
        if needs_captions and pair is None:
            fields = CaptionFields.from_setting(self.caption_field)
        corpus = Corpus(
            sources,
            order,
            shards,
            fields,
            pair=pair,
            label_field=None if self.label_field is None else LabelField(self.label_field),
            max_image_bytes=self.max_image_bytes,
        )
        if self.skip is not None:
            corpus.skip, corpus.skip_unknown = read_skip_list(Path(self.skip), corpus)
        return corpus
