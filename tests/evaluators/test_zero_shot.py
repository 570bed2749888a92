"""Zero-shot classification against numbers worked by hand, and the errors of a broken set."""

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
from clipx.evaluators import retrieval, zero_shot
from clipx.evaluators.classifier import classifier
from clipx.metrics.distributions import binomial_interval
from clipx.training.evaluation import evaluator_for
from clipx.types import Result, Setting, UserError

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


def built(path: Path) -> zero_shot.ZeroShot:
    return zero_shot.Config(path=str(path)).build()


def evaluated(path: Path) -> Result:
    return built(path).evaluate(ENCODER, Setting())


def six_samples(folder: Path) -> Path:
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
    return write_test_set(folder, first, second, **FILES)


def test_metrics_by_hand(tmp_path: Path) -> None:
    found = evaluated(six_samples(tmp_path))
    # Logits are 5 times the cosines; green's classifier is (0, 1, 1) / sqrt(2).
    half = 0.5**0.5
    sure = {
        "red": softmax_of_first(1, 0, 0),
        "green": softmax_of_first(half, 0, 0),
        "mixed": softmax_of_first(3 / 5**0.5 * half, 2 / 5**0.5, 0),
        "blue": softmax_of_first(1, half, 0),
    }
    # Of 15 bins, red and green share the last, where two of three are right; mixed has its own;
    # blue is right once of two.
    assert [math.ceil(value * 15) for value in sure.values()] == [15, 15, 9, 13]
    bins = [
        abs(2 * sure["red"] + sure["green"] - 2),
        1 - sure["mixed"],
        abs(2 * sure["blue"] - 1),
    ]
    assert found.metrics == pytest.approx(
        {
            "zeroshot-top1": 4 / 6,
            "zeroshot-top5": 1.0,  # of three classes
            "zeroshot-mean_per_class_recall": (1 / 1 + 2 / 3 + 1 / 2) / 3,
            "zeroshot-ece": sum(bins) / 6,
            "num_samples": 6,
            "num_classes": 3,
        }
    )
    assert found.intervals["zeroshot-top1"] == binomial_interval(4, 6)
    assert "zeroshot-ece" not in found.intervals
    assert found.keys == [f"{n // 3}.tar/{n}" for n in range(6)]
    assert found.samples["zeroshot-top1"].tolist() == [1, 1, 1, 1, 0, 0]


def softmax_of_first(*cosines: float) -> float:
    return math.exp(5 * cosines[0]) / sum(math.exp(5 * c) for c in cosines)


def test_tables_say_which_class_is_taken_for_which(tmp_path: Path) -> None:
    tables = evaluated(six_samples(tmp_path)).tables
    assert [(row["class"], row["samples"], row["recall"]) for row in tables["per_class"]] == [
        ("blue", 2, 0.5),
        ("green", 3, pytest.approx(2 / 3)),
        ("red", 1, 1.0),
    ]
    assert tables["confusion"] == [
        {"class": "green", "taken_for": "blue", "count": 1},
        {"class": "blue", "taken_for": "red", "count": 1},
    ]


def test_a_tie_counts_against_the_model_in_accuracy_and_tables_alike(tmp_path: Path) -> None:
    """A model that sees nothing in a white picture: red, blue and a mean of both are as near."""
    white = {str(n): sample((255, 0, 255), 2 * (n % 2)) for n in range(4)}
    found = evaluated(write_test_set(tmp_path, white, **FILES))
    assert found.metrics["zeroshot-top1"] == 0
    assert found.metrics["zeroshot-top5"] == 1
    assert found.metrics["zeroshot-mean_per_class_recall"] == 0
    assert {row["class"]: row["recall"] for row in found.tables["per_class"]} == {
        "red": 0,
        "blue": 0,
    }
    assert sum(row["count"] for row in found.tables["confusion"]) == 4


def test_of_two_classes_of_one_name_the_first_is_preferred(tmp_path: Path) -> None:
    """No model can separate them, and OpenAI's list for ImageNet has two such pairs."""
    names = FILES | {"classnames": ["red", "green", "red", "blue"]}
    found = evaluated(write_test_set(tmp_path, {"0": sample(RED, 0), "1": sample(RED, 2)}, **names))
    assert found.samples["zeroshot-top1"].tolist() == [1, 0]
    assert found.tables["confusion"] == [{"class": "red", "taken_for": "red", "count": 1}]


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    path = write_test_set(tmp_path, {"0": sample(RED, 0)}, **(FILES | {"classnames": ["red"]}))
    with pytest.raises(UserError, match="has one class: there is no other to take it for"):
        built(path)


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_test_set(tmp_path, *({"a": sample(RED, n % 3)} for n in range(11)), **FILES)
    assert built(tmp_path).set.label.tolist() == [n % 3 for n in range(11)]


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
        (
            {"classnames": ["red"]},
            "the label '2' at sample .*0, but classnames.txt names 1 classes, from 0 on",
        ),
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
        built(path).evaluate(ENCODER, Setting())


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        (sample(RED, 3), "the label '3' at sample 0.tar/7, but classnames.txt names 3 classes"),
        (sample(RED, -1), "the label '-1'"),
        (sample(RED, "red"), "the label 'red'"),
        (sample(RED, "\u00b2"), "the label '\u00b2'"),  # a digit to str.isdigit, not to int
        (sample(RED, ""), "the label ''"),
        ({"png": png(0)}, r"sample 7 of .*0\.tar has no image or no \.cls member"),
        ({"cls": "0"}, r"sample 7 of .*0\.tar has no image or no \.cls member"),
        ({"png": b"<html>", "cls": "0"}, r"sample 0\.tar/7 of .* does not decode: .*starts with"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(
    tmp_path: Path, members: dict[str, Any], complaint: str
) -> None:
    path = write_test_set(tmp_path, {"7": members}, **FILES)
    with pytest.raises(UserError, match=complaint):
        built(path).evaluate(ENCODER, Setting())


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = write_test_set(tmp_path, **FILES)
    with pytest.raises(UserError, match=r"neither shards \*\.tar nor class folders"):
        built(path).evaluate(ENCODER, Setting())
    write_shard(path / "test/0.tar", {"0": sample(RED, 0)})
    (path / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"classnames.txt cannot be read: No such file"):
        built(path)
    (path / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(UserError, match=r"cannot be read: No such file .*templates=openai or"):
        built(path)


def test_the_classifier_averages_directions_not_prompts() -> None:
    weights = classifier(ENCODER, ["red", "green"], ["{c}", "a {c} car"])
    torch.testing.assert_close(weights, torch.tensor([[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]]))


def test_zero_shot_gives_the_softmax_of_scaled_similarities() -> None:
    images = [decode(solid((0, 30, 40)))]  # similarities 0 and 0.8
    found = clipx.zero_shot(ENCODER, images, ["red", "blue"])
    expected = 1 / (1 + math.exp(-5 * 0.8))
    torch.testing.assert_close(found, torch.tensor([[1 - expected, expected]]))
