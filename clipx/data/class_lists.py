"""Class names, class folders and prompt templates of ImageNet and its relatives, from those who
publish them: names and templates from open_clip (curated by OpenAI for arXiv:2103.00020), WordNet
ids from timm, ObjectNet's from the files that come with its images."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.types import UserError

IMAGENET = "imagenet"
# Which of the thousand classes a set has, by timm's lists, and how its folders are named.
# -a: arXiv:1907.07174, -r: arXiv:2006.16241, -sketch: arXiv:1905.13549, -v2: arXiv:1902.10811,
# whose folders have the numbers of the classes.
SUBSETS = {IMAGENET: "", "imagenet-sketch": "", "imagenet-v2": ""}
SUBSETS |= {"imagenet-a": "_a", "imagenet-r": "_r"}
OBJECTNET = "objectnet"
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""80 templates, and the 7 that do nearly as well, by open_clip's names for them."""


@dataclass(frozen=True)
class ClassList:
    """names: what prompts say of class 0, 1 ...; folders: where its images lie, in the same order;
    None where the sorted folders of a set are its classes; has_others: a set may have further
    folders, which are left out"""

    names: Sequence[str]
    folders: Sequence[str] | None = None
    has_others: bool = False


def known_classes(name: str) -> ClassList:
    """name: of SUBSETS"""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    wordnet = _timm_list("imagenet_synsets.txt")
    assert len(wordnet) == len(IMAGENET_CLASSNAMES) == 1000
    if name == "imagenet-v2":
        return ClassList(IMAGENET_CLASSNAMES, [str(number) for number in range(1000)])
    folders = _timm_list(f"imagenet{SUBSETS[name]}_synsets.txt")
    names = dict(zip(wordnet, IMAGENET_CLASSNAMES, strict=True))
    return ClassList([names[folder] for folder in folders], folders)


def objectnet_classes(path: Path) -> ClassList:
    """The 113 classes that ObjectNet (Barbu et al., NeurIPS 2019) shares with ImageNet, under its
    own names in lower case, as CLIP_benchmark has them. Raises UserError.

    path: of the unpacked objectnet-1.0, with mappings/ and images/
    """
    names = _mapping(path, "folder_to_objectnet_label.json")
    shared = _mapping(path, "objectnet_to_imagenet_1k.json")
    folders = sorted(folder for folder, name in names.items() if name in shared)
    return ClassList([names[folder].lower() for folder in folders], folders, has_others=True)


def _mapping(path: Path, name: str) -> dict[str, str]:
    file = path / "mappings" / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}, which says what ObjectNet's folders are, cannot be read: {error}; give the "
            "folder objectnet-1.0 as it is unpacked, and split=images"
        ) from error


def known_templates(name: str) -> list[str]:
    """Prompts with {c} where the class name goes. name: of TEMPLATES"""
    from open_clip import zero_shot_metadata

    return [template("{c}") for template in vars(zero_shot_metadata)[TEMPLATES[name]]]


def _timm_list(file: str) -> list[str]:
    data = pkgutil.get_data("timm.data", f"_info/{file}")
    assert data is not None, f"timm has no {file}"
    return data.decode().split()
