"""Class names, class folders and prompt templates of ImageNet and its relatives, from the packages
that publish them: names and templates from open_clip (curated by OpenAI for arXiv:2103.00020),
WordNet ids from timm."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass

IMAGENET = "imagenet"
# Which of the thousand classes a set has, by timm's lists, and how its folders are named.
# -a: arXiv:1907.07174, -r: arXiv:2006.16241, -sketch: arXiv:1905.13549, -v2: arXiv:1902.10811,
# whose folders have the numbers of the classes.
SUBSETS = {IMAGENET: "", "imagenet-sketch": "", "imagenet-v2": ""}
SUBSETS |= {"imagenet-a": "_a", "imagenet-r": "_r"}
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""80 templates, and the 7 that do nearly as well, by open_clip's names for them."""


@dataclass(frozen=True)
class ClassList:
    """names: what prompts say of class 0, 1 ...; folders: where its images lie, in the same order;
    None where the sorted folders of a set are its classes"""

    names: Sequence[str]
    folders: Sequence[str] | None = None


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


def known_templates(name: str) -> list[str]:
    """Prompts with {c} where the class name goes. name: of TEMPLATES"""
    from open_clip import zero_shot_metadata

    return [template("{c}") for template in vars(zero_shot_metadata)[TEMPLATES[name]]]


def _timm_list(file: str) -> list[str]:
    data = pkgutil.get_data("timm.data", f"_info/{file}")
    assert data is not None, f"timm has no {file}"
    return data.decode().split()
