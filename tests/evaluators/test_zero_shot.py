"""Zero-shot classification against numbers worked by hand, and what it says of a broken set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from color_encoder import ColorEncoder
from samples import png, solid, write_shard, write_test_set

import clipx
from clipx.data.decode import decode
from clipx.engine.evaluate import evaluator_for
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators.zero_shot import ZeroShot, classifier
from clipx.types import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
ENCODER = ColorEncoder(
    {
        "red": [1, 0, 0],
        "a red car": [1, 0, 0],
        "green": [0, 1, 0],
        "a green car": [0, 0, 1],  # so that the mean of green's prompts is (0, 1, 1) / sqrt(2)
        "blue": [0, 0, 1],
        "a blue car": [0, 0, 1],
    }
)
FILES = {
    "classnames": ["red", "green", "blue"],
    "zeroshot_classification_templates": ["{c}", "a {} car"],
}


def sample(color: tuple[int, int, int], label: Any) -> dict[str, Any]:
    return {"png": solid(color), "cls": str(label)}


def test_metrics_by_hand(tmp_path: Path) -> None:
    first = {
        "0": sample(RED, 0),  # right
        "1": sample(GREEN, 1),  # right
        "2": sample((0, 100, 200), 1),  # green 0.95, blue 0.89: right, thanks to both prompts
    }
    second = {
        "3": sample(BLUE, "2\n"),  # right
        "4": sample(BLUE, 1),  # blue
        "5": sample(RED, 2),  # red
    }
    path = write_test_set(tmp_path, first, second, **FILES)
    assert zero_shot.Config(path=str(path)).build().evaluate(ENCODER) == pytest.approx(
        {
            "zeroshot-top1": 4 / 6,
            "zeroshot-top5": 1.0,  # of three classes
            "zeroshot-mean_per_class_recall": (1 / 1 + 2 / 3 + 1 / 2) / 3,
            "num_samples": 6,
        }
    )


def test_scores_are_cosine_similarities(tmp_path: Path) -> None:
    path = write_test_set(tmp_path, {"0": sample((0, 30, 40), 1)}, **FILES)
    scores, label = ZeroShot(path).scores(ENCODER)
    assert label.tolist() == [1]
    torch.testing.assert_close(scores, torch.tensor([[0, 1.4 / math.sqrt(2), 0.8]]))


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_test_set(tmp_path, *({"a": sample(RED, n % 3)} for n in range(11)), **FILES)
    assert [label for _, label in ZeroShot(tmp_path).samples()] == [n % 3 for n in range(11)]


def test_the_kind_of_a_set_is_told_by_its_files(tmp_path: Path) -> None:
    captions = write_test_set(tmp_path / "a", {"0": {"png": png(0), "txt": "x"}})
    classes = write_test_set(tmp_path / "b", {"0": sample(RED, 0)}, **FILES)
    assert evaluator_for(captions) == retrieval.Config(path=str(captions))
    assert evaluator_for(classes) == zero_shot.Config(path=str(classes))
    with pytest.raises(UserError, match=r"c does not exist; the demo's are made by `clipx data"):
        evaluator_for(tmp_path / "c")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classnames": ["red"]}, "the label '2', but classnames.txt names 1 classes, from 0 on"),
        ({"zeroshot_classification_templates": ["a car"]}, r"'a car' has no place .* write \{c\}"),
        ({"zeroshot_classification_templates": [""]}, "templates.txt is empty"),
        ({"classnames": ["", " "]}, "classnames.txt is empty"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, list[str]], complaint: str
) -> None:
    path = write_test_set(tmp_path, {"0": sample(BLUE, 2)}, **(FILES | change))
    with pytest.raises(UserError, match=complaint):
        ZeroShot(path).evaluate(ENCODER)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        (sample(RED, 3), "the label '3', but classnames.txt names 3 classes"),
        (sample(RED, -1), "the label '-1'"),
        (sample(RED, "red"), "the label 'red'"),
        (sample(RED, "\u00b2"), "the label '\u00b2'"),  # a digit to str.isdigit, not to int
        (sample(RED, ""), "the label ''"),
        ({"png": png(0)}, r"sample 7 of .*0\.tar has no image or no \.cls member"),
        ({"cls": "0"}, r"sample 7 of .*0\.tar has no image or no \.cls member"),
        ({"png": b"<html>", "cls": "0"}, r"sample 7 of .*0\.tar does not decode: .*starts with"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(
    tmp_path: Path, members: dict[str, Any], complaint: str
) -> None:
    path = write_test_set(tmp_path, {"7": members}, **FILES)
    with pytest.raises(UserError, match=complaint):
        ZeroShot(path).evaluate(ENCODER)


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = write_test_set(tmp_path, **FILES)
    with pytest.raises(UserError, match=r"has no shards test/\*\.tar"):
        ZeroShot(path).evaluate(ENCODER)
    write_shard(path / "test/0.tar", {"0": sample(RED, 0)})
    for name in ("zeroshot_classification_templates.txt", "classnames.txt"):
        (path / name).unlink()
        with pytest.raises(UserError, match=rf"{name} cannot be read: No such file"):
            ZeroShot(path)


def test_the_classifier_averages_directions_not_prompts() -> None:
    weights = classifier(ENCODER, ["red", "green"], ["{c}", "a {c} car"])
    torch.testing.assert_close(weights, torch.tensor([[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]]))


def test_zero_shot_gives_the_softmax_of_scaled_similarities() -> None:
    images = [decode(solid((0, 30, 40)))]  # similarities 0 and 0.8
    found = clipx.zero_shot(ENCODER, images, ["red", "blue"])
    expected = 1 / (1 + math.exp(-5 * 0.8))
    torch.testing.assert_close(found, torch.tensor([[1 - expected, expected]]))
