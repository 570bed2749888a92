"""The held-out test sets of the demo corpus and the credits of its drawings."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipx.demo.recipes import Recipe

BuildDemo = Callable[..., dict[str, Any]]


def test_zero_shot_sets_have_the_layout_of_clip_benchmark(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    build_demo(tmp_path / "out")
    classes = {
        "emoji-fluent": 3,
        "flags-circle": 1,  # France; `ar` is the Arabic language
        "icons-phosphor": 9,
        "icons-phosphor-common": 5,
        "mnist": 10,
    }
    for name, count in classes.items():
        folder = tmp_path / "out/eval" / name
        names = (folder / "classnames.txt").read_text("utf-8").splitlines()
        templates = (folder / "zeroshot_classification_templates.txt").read_text("utf-8")
        assert len(names) == len(set(names)) == count
        assert all("{c}" in line for line in templates.splitlines())
        assert (folder / "test/nshards.txt").read_text("utf-8") == "1\n"
        with tarfile.open(folder / "test/0.tar") as tar:
            members = tar.getnames()
            numbers = {int(tar.extractfile(m).read()) for m in members if m.endswith(".cls")}
        assert numbers == set(range(count))
        assert [m.rsplit(".")[1] for m in members] == ["png", "cls"] * (len(members) // 2)


def test_groups_of_emoji_have_a_training_split_without_the_tested_ones(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    build_demo(tmp_path / "out")
    folder = tmp_path / "out/eval/emoji-groups"
    assert (folder / "classnames.txt").read_text("utf-8").split() == ["Other", "Things"]
    labels = {}
    for split in ("test", "train"):
        with tarfile.open(folder / split / "0.tar") as tar:
            names = [m for m in tar.getnames() if m.endswith(".cls")]
            labels[split] = {m: int(tar.extractfile(m).read()) for m in names}
    assert sorted(labels["test"].values()) == [0, 1]
    assert list(labels["train"].values()) == [1], "every other one of a group"
    assert not labels["test"].keys() & labels["train"].keys()


def test_a_corpus_of_an_older_version_gets_the_sets_that_it_lacks(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    build_demo(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/eval/mnist/train")
    shutil.rmtree(tmp_path / "out/eval/emoji-groups")
    report = build_demo(tmp_path / "out")
    assert {"mnist", "emoji-groups"} <= report["eval"].keys()
    assert (tmp_path / "out/eval/mnist/train/0.tar").exists()
    assert (tmp_path / "out/eval/emoji-groups/test/0.tar").exists()


def test_common_icons_are_tested_in_every_style(build_demo: BuildDemo, tmp_path: Path) -> None:
    report = build_demo(tmp_path / "out")
    # five concepts, one also bold and filled
    assert report["eval"]["icons-phosphor-common"]["images"] == 7


def test_styles_that_were_trained_on_are_not_tested(build_demo: BuildDemo, tmp_path: Path) -> None:
    build_demo(tmp_path / "out")
    folder = tmp_path / "out/eval/icons-phosphor-styles"
    names = {}
    for split in ("test", "train"):
        with tarfile.open(folder / split / "0.tar") as tar:
            names[split] = [m.removesuffix(".png") for m in tar.getnames() if m.endswith("png")]
    assert names["test"] == ["ph_apple-fill"]
    assert len(names["train"]) == 6
    assert "ph_apple-bold" in names["train"]


def test_retrieval_set_has_one_distinct_caption_an_image(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    build_demo(tmp_path / "out")
    folder = tmp_path / "out/eval/emoji-fluent-retrieval"
    assert (folder / "dataset_type.txt").read_text("utf-8").strip() == "retrieval"
    assert not (folder / "classnames.txt").exists()
    with tarfile.open(folder / "test/0.tar") as tar:
        texts = [tar.extractfile(m).read().decode() for m in tar.getnames() if m.endswith(".txt")]
    assert sorted(texts) == [
        "dog face, fun, nice",
        "grinning face, fun, nice",
        "red apple, fun, nice",
    ]


def test_sets_without_their_package_are_named_and_built_once_it_is_there(
    build_demo: BuildDemo, demo_recipe: Recipe, tmp_path: Path
) -> None:
    report = build_demo(tmp_path / "out")
    assert set(report["skipped"]) == {"openclipart-retrieval", "fashion-mnist"}
    assert "apt-get install" in report["skipped"]["fashion-mnist"]
    demo_recipe.fashion_mnist.mkdir()
    for name, array in {
        "t10k-images-idx3-ubyte.gz": np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28),
        "t10k-labels-idx1-ubyte.gz": np.array([0, 9, 4], np.uint8),
    }.items():
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (demo_recipe.fashion_mnist / name).write_bytes(gzip.compress(head + array.tobytes()))
    report = build_demo(tmp_path / "out")
    assert set(report["skipped"]) == {"openclipart-retrieval"}
    assert report["eval"]["fashion-mnist"]["images"] == 3


def test_every_source_is_credited_with_its_license(build_demo: BuildDemo, tmp_path: Path) -> None:
    report = build_demo(tmp_path / "out")
    rows = json.loads((tmp_path / "out/licenses.json").read_text("utf-8"))
    trained = {row["source"]: row["train"] for row in rows if row["train"]}
    assert trained == report["by_source"]
    assert all(row["license"] and row["author"] and row["url"] for row in rows)
    table = (tmp_path / "out/LICENSES.md").read_text("utf-8")
    assert all(f"| {row['source']} |" in table for row in rows)
