"""Folders of classes, ImageNet's names, and the errors of a folder that is not the right one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from color_encoder import ColorEncoder
from samples import solid
from torch import Tensor

from clipx.config import load
from clipx.data.class_lists import SUBSETS, known_classes, known_templates
from clipx.eval_verb import Suite
from clipx.evaluators import zero_shot
from clipx.evaluators.classifier import classifier
from clipx.evaluators.labeled_set import LabeledConfig, LabeledSet
from clipx.training.evaluation import evaluator_for
from clipx.types import Setting, UserError

ROOT = Path(__file__).parents[2]


def write_folders(folder: Path, names: list[str], *, images: int = 1) -> Path:
    """Each class in a color of its own."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            data = solid((number % 256, number // 256, 255 - image))
            (folder / name / f"{image}.png").write_bytes(data)
    return folder


def read(path: Path, split: str | None = None, classes: str | None = None) -> LabeledSet:
    return LabeledConfig(str(path), split, classes).read()


class Knowing:
    """Knows the classes of `write_folders` by their colors, under any names."""

    image_size, scale = 8, 1.0

    def __init__(self, names: list[str]) -> None:
        self.names, self.embedded = names, 0

    def fit(self, image: Tensor) -> Tensor:
        return image

    def encode_image(self, images: Any) -> Tensor:
        numbers = [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in images]
        return self._of([self.names[number] for number in numbers])

    def encode_text(self, texts: list[str]) -> Tensor:
        self.embedded += len(texts)
        return self._of([text.split("|")[1] for text in texts])

    def _of(self, names: list[str]) -> Tensor:
        first = torch.tensor([self.names.index(name) for name in names])
        return torch.nn.functional.one_hot(first, len(self.names)).float()

    def text_digest(self) -> str:
        return "knowing"


def test_the_lists_are_those_that_are_published() -> None:
    full = known_classes("imagenet")
    assert full.folders is not None
    assert (full.folders[0], full.names[0]) == ("n01440764", "tench")
    assert (full.folders[-1], full.names[-1]) == ("n15075141", "toilet paper")
    assert list(full.folders) == sorted(full.folders)
    assert len(set(full.folders)) == len(full.names) == 1000
    for name in SUBSETS:
        found = known_classes(name)
        assert found.folders is not None
        assert len(found.names) == len(found.folders) == (200 if name[-2:] in "-a-r" else 1000)
        if name != "imagenet-v2":
            where = [full.folders.index(folder) for folder in found.folders]
            assert [full.names[i] for i in where] == list(found.names)
    assert known_classes("imagenet-v2").folders[10] == "10"  # type: ignore[index]
    assert known_classes("imagenet-a").names[0] == "stingray"
    assert len(known_templates("openai")) == 80
    assert known_templates("openai")[0] == "a bad photo of a {c}."
    assert "itap of a {c}." in known_templates("simple")


def test_the_imagenet_suite_runs_on_a_tree_of_its_thousand_folders(tmp_path: Path) -> None:
    listed = known_classes("imagenet")
    assert listed.folders is not None
    write_folders(tmp_path / "val", list(listed.folders))
    suite = load(
        Suite,
        ROOT / "configs/evaluators/imagenet.yaml",
        [f"evaluators.imagenet.path={tmp_path}", f"evaluators.imagenet.templates={tmp_path}/t"],
    )
    (tmp_path / "t").write_text("a |{c}|\nthe |{c}| .\n")
    evaluator = suite.evaluators["imagenet"].build()
    assert evaluator.set.images.keys[1] == "n01443537/0.png"
    found = evaluator.evaluate(Knowing(list(listed.names)), Setting())
    # OpenAI's list has "missile" and "sunglasses" twice: of two equal classes one is preferred.
    assert found.metrics["zeroshot-top1"] == 0.998
    assert found.metrics["zeroshot-top5"] == 1.0
    assert found.metrics["num_samples"] == 1000
    taken = {(row["class"], row["taken_for"]) for row in found.tables["confusion"]}
    assert taken == {("missile", "missile"), ("sunglasses", "sunglasses")}


def test_folders_are_classes_in_sorted_order_by_their_own_names_or_a_files(tmp_path: Path) -> None:
    write_folders(tmp_path, ["hot_dog", "cat"], images=2)
    (tmp_path / "cat/readme.txt").write_text("no image")
    found = read(tmp_path)
    assert (list(found.names), found.label.tolist()) == (["cat", "hot dog"], [0, 0, 1, 1])
    assert list(found.images.keys) == [f"{d}/{n}.png" for d in ("cat", "hot_dog") for n in (0, 1)]
    (tmp_path / "classnames.txt").write_text("feline\nsausage\n")
    assert list(read(tmp_path).names) == ["feline", "sausage"]
    assert evaluator_for(tmp_path) == zero_shot.Config(path=str(tmp_path))
    (tmp_path / "classnames.txt").write_text("feline\n")
    with pytest.raises(UserError, match=r"has 2 class folders, and .*classnames.txt names 1"):
        read(tmp_path)


def test_numbered_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    assert list(read(write_folders(tmp_path, ["10", "9", "1"])).names) == ["1", "9", "10"]


def test_a_split_is_a_folder(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", ["a", "b"], images=3)
    write_folders(tmp_path / "val", ["a", "b"])
    assert len(read(tmp_path)) == 2
    assert len(read(tmp_path, "train")) == 6
    with pytest.raises(UserError, match="has no split 'test'; it has train, val"):
        read(tmp_path, "test")


@pytest.mark.parametrize(
    ("folders", "classes", "complaint"),
    [
        (
            ["train", "val2"],
            "imagenet",
            "none of the 1000 class folders of imagenet, such as n014",
        ),
        (["n01440764"], "imagenet", r"lacks 999 of the 1000 .* first n01443537 \(goldfish\): unp"),
        (["a"], "imagenet-x", "'imagenet-x' .* is neither a file nor one of imagenet, imagenet-s"),
        (["a"], "./nowhere.txt", "nowhere.txt cannot be read: No such file"),
    ],
)
def test_a_folder_that_does_not_fit_its_classes_is_named(
    tmp_path: Path, folders: list[str], classes: str, complaint: str
) -> None:
    write_folders(tmp_path, folders)
    with pytest.raises(UserError, match=complaint):
        read(tmp_path, None, classes)


def test_a_folder_that_is_no_class_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path, [*(known_classes("imagenet-r").folders or ()), "other"])
    with pytest.raises(UserError, match="folders that are no class of imagenet-r: other; take"):
        read(tmp_path, None, "imagenet-r")


def test_objectnets_classes_are_those_that_its_own_files_share_with_imagenet(
    tmp_path: Path,
) -> None:
    write_folders(tmp_path / "images", ["air_freshener", "t-shirt", "alarm_clock"])
    with pytest.raises(UserError, match=r"mappings/folder_to_objectnet_label.json.* split=images"):
        read(tmp_path, "images", "objectnet")
    mappings = {
        "folder_to_objectnet_label": {
            "air_freshener": "Air freshener",
            "alarm_clock": "Alarm clock",
            "t-shirt": "T-shirt",
        },
        "objectnet_to_imagenet_1k": {"T-shirt": "jersey, T-shirt", "Alarm clock": "analog clock"},
    }
    (tmp_path / "mappings").mkdir()
    for name, content in mappings.items():
        (tmp_path / f"mappings/{name}.json").write_text(json.dumps(content))
    found = read(tmp_path, "images", "objectnet")
    assert list(found.names) == ["alarm clock", "t-shirt"]
    assert list(found.images.keys) == ["alarm_clock/0.png", "t-shirt/0.png"]
    assert found.label.tolist() == [0, 1]


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    (tmp_path / "val/cat").mkdir(parents=True)
    with pytest.raises(UserError, match="no images in its 1 class folders; looked for jpg"):
        read(tmp_path)
    (tmp_path / "val/cat").rmdir()
    with pytest.raises(UserError, match=r"has neither shards \*.tar nor class folders"):
        read(tmp_path)
    (tmp_path / "val/a.png").write_bytes(solid((0, 0, 0)))
    with pytest.raises(UserError, match="has images but no class folders: move each image into"):
        read(tmp_path)


def test_a_classifier_is_embedded_once(tmp_path: Path) -> None:
    encoder, names = Knowing(["a", "b", "c"]), ["a", "b", "c"]
    setting = Setting(cache=tmp_path / "cache")
    first = classifier(encoder, names, ["x |{c}|"], setting)
    assert encoder.embedded == 3
    assert torch.equal(classifier(encoder, names, ["x |{c}|"], setting), first)
    assert encoder.embedded == 3
    classifier(encoder, names, ["y |{c}|"], setting)
    classifier(encoder, names[:2], ["x |{c}|"], setting)
    assert encoder.embedded == 8, "other prompts or classes are another classifier"
    other = ColorEncoder({"x |a|": [1, 0, 0], "x |b|": [0, 1, 0], "x |c|": [0, 0, 1]})
    assert not torch.equal(classifier(other, names, ["x |{c}|"], setting), first[[1, 2, 0]])


def test_without_a_cache_nothing_is_kept(tmp_path: Path, own_cache: Path) -> None:
    before = set(own_cache.rglob("*"))  # other tests of the session keep files there
    classifier(Knowing(["a"]), ["a"], ["|{c}|"])
    assert set(own_cache.rglob("*")) == before
