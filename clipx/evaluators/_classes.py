"""Sets of images with classes, and classifiers made of class names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from clipx.data.class_lists import (
    OBJECTNET,
    SUBSETS,
    TEMPLATES,
    ClassList,
    known_classes,
    known_templates,
    objectnet_classes,
)
from clipx.evaluators._ranks import checked_texts, embed_images, main_only, shared_out
from clipx.evaluators._sets import (
    Images,
    class_folders,
    lines,
    read_class_folders,
    read_shards,
    split_folder,
)
from clipx.files import replacing
from clipx.types import Encoder, Setting, UserError

PROMPTS = 1024
"""Embedded at a time."""


@dataclass(frozen=True)
class LabeledSet:
    """names: of the C classes; label: (N,) int64"""

    images: Images
    label: Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor) -> LabeledSet:
        """rows: (n,) numbers of samples"""
        numbers, images = rows.tolist(), self.images
        chosen = Images(
            images.path, [images.keys[n] for n in numbers], lambda i: images.read(numbers[i])
        )
        return LabeledSet(chosen, self.label[rows], self.names)

    def features(self, encoder: Encoder, setting: Setting) -> Tensor:
        """(N, D)"""
        return embed_images(encoder, self.images.image, self.images.keys, setting)


def read_labeled(path: Path, split: str | None = None, classes: str | None = None) -> LabeledSet:
    """A set in either layout. Raises UserError.

    classes: of class_lists.SUBSETS, `objectnet`, or a file with one name a line; None:
    classnames.txt, or the folders' own names
    """
    folder = split_folder(path, split)
    if any(folder.glob("*.tar")):
        names = list(_class_list(path, classes or str(path / "classnames.txt")).names)
        images, texts = read_shards(folder, "cls")
        labels = [_label(images, number, text, names) for number, text in enumerate(texts)]
        return LabeledSet(images, torch.tensor(labels), names)
    told = classes or (str(path / "classnames.txt") if (path / "classnames.txt").exists() else None)
    there = class_folders(folder)
    listed = _class_list(path, told) if told else ClassList([n.replace("_", " ") for n in there])
    if listed.folders is not None:
        _check_folders(folder, there, listed, str(told))
    elif len(listed.names) != len(there):
        raise UserError(
            f"test set {folder} has {len(there)} class folders, and {told} names "
            f"{len(listed.names)} classes; it must name one for each folder, in sorted order"
        )
    images, labels = read_class_folders(folder, listed.folders or there)
    return LabeledSet(images, torch.tensor(labels), list(listed.names))


def read_templates(path: Path, told: str | None) -> list[str]:
    """told: of class_lists.TEMPLATES or a file, one prompt a line; None: that of the set. Raises
    UserError."""
    if told in TEMPLATES:
        return known_templates(told)
    file = Path(told) if told else path / "zeroshot_classification_templates.txt"
    if told is None and not file.exists():
        raise UserError(
            f"test set file {file} cannot be read: No such file or directory; write prompts with "
            f"{{c}} into it, or set templates={' or '.join(TEMPLATES)}"
        )
    return with_places(lines(file))


def with_places(templates: Sequence[str]) -> list[str]:
    """The templates. Raises UserError where one has no place for the class name."""
    wrong = [t for t in templates if "{c}" not in t and "{}" not in t]
    if wrong:
        raise UserError(
            f"prompt template {wrong[0]!r} has no place for the class name; "
            "write {c} where it belongs"
        )
    return list(templates)


def _class_list(path: Path, told: str) -> ClassList:
    if told in SUBSETS:
        return known_classes(told)
    if told == OBJECTNET:
        return objectnet_classes(path)
    if not Path(told).exists() and "/" not in told:
        raise UserError(
            f"classes {told!r} of test set {path} is neither a file nor one of "
            f"{', '.join([*SUBSETS, OBJECTNET])}"
        )
    return ClassList(lines(Path(told)))


def _label(images: Images, number: int, text: str, names: Sequence[str]) -> int:
    if not text.strip().isdecimal() or int(text) >= len(names):
        raise UserError(
            f"test set {images.path} has the label {text.strip()!r} at sample "
            f"{images.keys[number]}, but classnames.txt names {len(names)} classes, from 0 on"
        )
    return int(text)


def _check_folders(folder: Path, there: list[str], listed: ClassList, told: str) -> None:
    """Raises UserError unless the folders are those of the classes."""
    wanted = list(listed.folders or ())
    missing = [n for n, f in enumerate(wanted) if f not in there]
    if len(missing) == len(wanted):
        raise UserError(
            f"test set {folder} has none of the {len(wanted)} class folders of {told}, such as "
            f"{wanted[0]}; it has {', '.join(there[:5])}{' ...' if len(there) > 5 else ''}. Give "
            "the folder that holds the class folders, or its name as split"
        )
    if missing:
        first = missing[0]
        raise UserError(
            f"test set {folder} lacks {len(missing)} of the {len(wanted)} class folders of {told}, "
            f"first {wanted[first]} ({listed.names[first]}): unpack it again; accuracy over fewer "
            "classes would not compare with anybody's"
        )
    unknown = [name for name in there if name not in wanted]
    if unknown and not listed.has_others:
        raise UserError(
            f"test set {folder} has folders that are no class of {told}: {', '.join(unknown[:5])}; "
            "take them out, or choose another list with classes"
        )


def classifier(
    encoder: Encoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    setting: Setting | None = None,
) -> Tensor:
    """(C, D) unit rows: for each class, the normalized mean of its normalized prompt embeddings
    (arXiv:2103.00020, 3.1.4)."""
    setting = setting or Setting()
    templates = with_places(templates)
    cache = setting.cache
    if cache is None:
        return _embed_classes(encoder, class_names, templates, setting)
    told = "\n".join([encoder.text_digest(), *templates, "", *class_names])
    file = cache / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
    kept = main_only(
        setting.ranks, lambda: load_file(file)["classifier"] if file.exists() else None
    )
    if kept is not None:
        return kept
    weights = _embed_classes(encoder, class_names, templates, setting)
    main_only(setting.ranks, lambda: _keep(file, weights))
    return weights


def _embed_classes(
    encoder: Encoder, class_names: Sequence[str], templates: Sequence[str], setting: Setting
) -> Tensor:
    """Equal names have equal rows, bit by bit: each is embedded once."""
    size = max(1, PROMPTS // len(templates))
    number_of = {name: number for number, name in enumerate(dict.fromkeys(class_names))}
    distinct = list(number_of)

    def embed(part: int) -> Tensor:
        names = distinct[part * size : (part + 1) * size]
        prompts = [t.replace("{c}", n).replace("{}", n) for n in names for t in templates]
        embeddings = checked_texts(encoder, prompts).view(len(names), len(templates), -1)
        return F.normalize(embeddings.mean(1), dim=-1)

    weights = torch.cat(shared_out(setting.ranks, -(-len(distinct) // size), embed))
    return weights[[number_of[name] for name in class_names]]


def _keep(file: Path, weights: Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file({"classifier": weights.contiguous()}, temporary)
