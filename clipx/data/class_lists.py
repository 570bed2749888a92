"""Class names, class folders and prompt templates of ImageNet and its relatives, as published:
names and templates from open_clip (curated by OpenAI for arXiv:2103.00020), WordNet ids from timm,
ObjectNet's names from the files beside its images."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.types import UserError

IMAGENET = "imagenet"
OBJECTNET = "objectnet"
# Name of a set -> suffix of timm's list of those of the thousand classes that it has.
# -a: arXiv:1907.07174, -r: arXiv:2006.16241, -sketch: arXiv:1905.13549, -v2: arXiv:1902.10811
SUBSETS = {
    IMAGENET: "",
    "imagenet-sketch": "",
    "imagenet-v2": "",
    "imagenet-a": "_a",
    "imagenet-r": "_r",
}
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""80 templates, and 7 of them that do nearly as well, with their names in open_clip."""


@dataclass(frozen=True)
class ClassList:
    """names: of class 0, 1 ... in prompts
    folders: of the images of class 0, 1 ...; None where the sorted folders are the classes
    has_others: a set may have further folders, which are left out
    """

    names: Sequence[str]
    folders: Sequence[str] | None = None
    has_others: bool = False


def known_classes(name: str) -> ClassList:
    """name: of SUBSETS"""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    wordnet_ids = _timm_list("imagenet_synsets.txt")
    # Both list the classes by their number, so that ids and names can be paired.
    assert len(wordnet_ids) == len(IMAGENET_CLASSNAMES) == 1000
    if name == "imagenet-v2":  # its folders are named by the numbers of the classes
        return ClassList(IMAGENET_CLASSNAMES, [str(number) for number in range(1000)])
    folders = _timm_list(f"imagenet{SUBSETS[name]}_synsets.txt")
    class_name = dict(zip(wordnet_ids, IMAGENET_CLASSNAMES, strict=True))
    return ClassList([class_name[folder] for folder in folders], folders)


def _timm_list(file: str) -> list[str]:
    data = pkgutil.get_data("timm.data", f"_info/{file}")
    assert data is not None, f"timm has no {file}"
    return data.decode().split()


def objectnet_classes(path: Path) -> ClassList:
    """The 113 classes that ObjectNet (Barbu et al., NeurIPS 2019) shares with ImageNet, with its
    own names in lower case, as in CLIP_benchmark. Raises UserError.

    path: the unpacked objectnet-1.0 with mappings/ and images/
    """
    names = _read_mapping(path / "mappings" / "folder_to_objectnet_label.json")
    shared = _read_mapping(path / "mappings" / "objectnet_to_imagenet_1k.json")
    folders = sorted(folder for folder, name in names.items() if name in shared)
    return ClassList([names[folder].lower() for folder in folders], folders, has_others=True)


def _read_mapping(file: Path) -> dict[str, str]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}, which lists the classes of ObjectNet's folders, cannot be read: {error}; "
            "give the folder objectnet-1.0 as it is unpacked, and split=images"
        ) from error


def known_templates(name: str) -> list[str]:
    """Prompts with {c} in the place of the class name. name: of TEMPLATES"""
    from open_clip import zero_shot_metadata

    return [template("{c}") for template in vars(zero_shot_metadata)[TEMPLATES[name]]]
