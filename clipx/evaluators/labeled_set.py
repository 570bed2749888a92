"""Test sets whose images have classes: in either layout of test_sets.py, or from a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.config import config
from clipx.data.class_lists import OBJECTNET, SUBSETS, ClassList, known_classes, objectnet_classes
from clipx.data.labels import LabelField
from clipx.durations import DurationText
from clipx.evaluators.distributed import embed_images
from clipx.evaluators.sample_source import (
    PartOfRun,
    SourceOrHeldOut,
    check_source,
    cluster_field,
    open_samples,
)
from clipx.evaluators.test_sets import (
    Images,
    class_folders,
    evenly_spaced,
    read_class_folders,
    read_lines,
    read_shards,
    split_folder,
)
from clipx.types import ImageTextEncoder, Setting, UserError


@dataclass(frozen=True)
class LabeledSet:
    """label: (N,) int64; names: of the C classes"""

    images: Images
    label: Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: list[int]) -> LabeledSet:
        return LabeledSet(self.images.subset(rows), self.label[rows], self.names)

    def evenly_spaced(self, limit: int | None) -> LabeledSet:
        """At most `limit` samples, from the first on."""
        return self if limit is None else self.subset(evenly_spaced(len(self), limit))

    def features(self, encoder: ImageTextEncoder, setting: Setting) -> Tensor:
        """(N, D)"""
        return embed_images(encoder, self.images.image, self.images.keys, setting)


@config
class LabeledConfig:
    """Settings of evaluators on images with classes."""

    path: str | None = None
    """Folder in CLIP_benchmark's webdataset layout, or with class folders."""
    split: str | None = None
    """Folder of the split; null: `test` or `val` if it has one."""
    classes: str | None = None
    """imagenet, imagenet-v2, -a, -r or -sketch, objectnet, or a file with one class name a line;
    null: the set's classnames.txt, else the names of its folders; of a source, the labels."""
    every: DurationText | None = None
    """Interval in training, as a duration; null: at the end only."""
    source: SourceOrHeldOut = None
    """Instead of `path`: any source that `data.sources` takes, or `held_out`, that part of the
    run's own corpus."""
    label_field: str | None = None
    """Of a source: the field of the `.json` member, or column of a table, with the class."""
    cluster_by: str | None = None
    """Of a source: a field, such as product_id; samples with the same value are a cluster.
    Intervals and `clipx compare` then take clusters as independent, not samples (arXiv:2411.00640).
    null: `data.held_out_by` for `held_out`, else none."""

    def read(self, split: str | None = None) -> LabeledSet:
        """The samples of `split`, by default those of the test. Raises UserError."""
        if self.source is not None:
            if split is not None:
                raise UserError("this evaluator reads a training split, so it needs a `path`")
            (labeled,) = read_labeled_sources(self, [self.source])
            return labeled
        if self.path is None:
            raise UserError("the test set needs a `path`, or a `source`")
        if self.label_field is not None or self.cluster_by is not None:
            raise UserError("label_field and cluster_by belong to a `source`, which has fields")
        path = Path(self.path)
        classes = self.classes
        folder = split_folder(path, split or self.split)
        if any(folder.glob("*.tar")):
            classes = classes or str(path / "classnames.txt")
            names = list(_read_classes(f"test set {path}", classes, folder=path).names)
            images, texts = read_shards(folder, "cls")
            labels = []
            for key, text in zip(images.keys, texts, strict=True):
                text = text.strip()
                # isdecimal, since isdigit accepts a superscript two, which int() refuses.
                if not text.isdecimal() or int(text) >= len(names):
                    raise UserError(
                        f"test set {images.path} has the label {text!r} at sample {key}, but "
                        f"classnames.txt names {len(names)} classes, from 0 on"
                    )
                labels.append(int(text))
            return LabeledSet(images, torch.tensor(labels), names)

        # Folders: a file or a published list may name the classes, else the folders do.
        folders = class_folders(folder)
        if classes is None and (path / "classnames.txt").exists():
            classes = str(path / "classnames.txt")
        if classes is None:
            names = [name.replace("_", " ") for name in folders]
        else:
            class_list = _read_classes(f"test set {path}", classes, folder=path)
            names = list(class_list.names)
            if class_list.folders is not None:
                # A published list has its own order of classes, which accuracy tables follow.
                _check_folders(folder, folders, class_list, classes)
                folders = list(class_list.folders)
            elif len(names) != len(folders):
                raise UserError(
                    f"test set {folder} has {len(folders)} class folders, and {classes} names "
                    f"{len(names)} classes; it must name one a folder, in sorted order"
                )
        images, labels = read_class_folders(folder, folders)
        return LabeledSet(images, torch.tensor(labels), names)


def read_labeled_sources(settings: LabeledConfig, sources: Sequence[Any]) -> list[LabeledSet]:
    """The samples of each source, with the same classes: those of `classes`, else all labels,
    sorted. Raises UserError.

    sources: of the type SourceOrHeldOut
    """
    check_source(settings.path, settings.split)
    if settings.label_field is None:
        raise UserError("a `source` needs label_field, the column that has the classes")
    field = LabelField(settings.label_field)
    opened = []
    for source in sources:
        samples = open_samples(source)
        # Of test samples alone: no interval is of the training samples.
        is_test = source is settings.source
        cluster_by = cluster_field(source, settings.cluster_by) if is_test else None
        opened.append((samples, *samples.texts(field.text_of, cluster_by)))
    if settings.classes is None:
        names = sorted({text for _, texts, _ in opened for text in texts})
    else:
        names = list(_read_classes(opened[0][0].title, settings.classes).names)
    numbers = {str(number): number for number in range(len(names))}
    for number, name in reversed(list(enumerate(names))):
        numbers[name] = number  # of equal names the first; a name is preferred to a number
    labeled = []
    for samples, texts, clusters in opened:
        for text, key in zip(texts, samples.keys, strict=True):
            if text not in numbers:
                raise UserError(
                    f"test sample {key} of {samples.title} has the label {text!r}, which is "
                    f"neither one of the {len(names)} names of {settings.classes} nor a number"
                )
        label = torch.tensor([numbers[text] for text in texts])
        labeled.append(LabeledSet(samples.images(clusters), label, names))
    return labeled


def read_train_and_test(
    settings: LabeledConfig, train_split: str, train_source: Any
) -> tuple[LabeledSet, LabeledSet]:
    """Two splits with the same classes. Raises UserError.

    train_source: beside settings.source; None: for `held_out` the samples that the run trains on
    """
    path = settings.path
    if settings.source is not None:
        if train_source is None and isinstance(settings.source, PartOfRun):
            train_source = settings.source.rest()
        if train_source is None:
            raise UserError("a `source` of test samples needs train_source beside it")
        train, test = read_labeled_sources(settings, [train_source, settings.source])
        path = str(train.images.path)
    else:
        if train_source is not None:
            raise UserError("train_source belongs to a `source`; `path` has train_split")
        train = settings.read(train_split)
        test = settings.read()
    # Without a list of classes, the folders of each split are numbered by their own names, so that
    # number 1 might be another class in each.
    if list(train.names) != list(test.names):
        raise UserError(
            f"test set {path} has other classes in its training split than in its test split"
        )
    if len(train.label.unique()) < 2:
        raise UserError(f"training split of {path} has samples of one class only")
    return train, test


def _read_classes(title: str, classes: str, *, folder: Path | None = None) -> ClassList:
    """Raises UserError.

    title: what to call the set in messages; classes: see LabeledConfig
    folder: of the set, where ObjectNet has its list; None for a source
    """
    if classes in SUBSETS:
        return known_classes(classes)
    if classes == OBJECTNET and folder is not None:
        return objectnet_classes(folder)
    known = [*SUBSETS] if folder is None else [*SUBSETS, OBJECTNET]
    if not Path(classes).exists() and "/" not in classes:
        raise UserError(
            f"classes {classes!r} of {title} is neither a file nor one of {', '.join(known)}"
        )
    return ClassList(read_lines(Path(classes)))


def _check_folders(folder: Path, folders: list[str], class_list: ClassList, classes: str) -> None:
    """Raise UserError unless the folders are those of the classes."""
    wanted = list(class_list.folders or ())
    missing = [name for name in wanted if name not in folders]
    if len(missing) == len(wanted):  # the level above or below was given
        shown = ", ".join(folders[:5])
        if len(folders) > 5:
            shown += " ..."
        raise UserError(
            f"test set {folder} has none of the {len(wanted)} class folders of {classes}, such as "
            f"{wanted[0]}; it has {shown}. Give the folder that holds the class folders, or its "
            "name as split"
        )
    if missing:
        name = class_list.names[wanted.index(missing[0])]
        raise UserError(
            f"test set {folder} lacks {len(missing)} of the {len(wanted)} class folders of "
            f"{classes}, first {missing[0]} ({name}): unpack it again; accuracy over fewer "
            "classes would not compare with anybody's"
        )
    unknown = [name for name in folders if name not in wanted]
    if unknown and not class_list.has_others:
        raise UserError(
            f"test set {folder} has folders that are no class of {classes}: "
            f"{', '.join(unknown[:5])}; take them out, or choose another list with classes"
        )
