"""One picture that cannot be decoded ends no evaluation: it is a gray one, counted and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from color_encoder import ColorEncoder
from samples import png_claiming, solid, write_test_set

from clipx.evaluators import zero_shot
from clipx.evaluators.distributed import embed_images, run_evaluator
from clipx.evaluators.test_sets import UndecodableImage
from clipx.types import Ranks, Result, Setting, UserError

ENCODER = ColorEncoder({"red": (1, 0, 0), "blue": (0, 0, 1)})
FILES = {"classnames": ["red", "blue"], "zeroshot_classification_templates": ["{c}"]}
COLORS = [(255, 0, 0), (0, 0, 255)]


def evaluated(folder: Path, pictures: dict[str, bytes]) -> Result:
    samples = {
        key: {"png": data, "cls": str(n % 2)} for n, (key, data) in enumerate(pictures.items())
    }
    path = write_test_set(folder, samples, **FILES)
    return run_evaluator(zero_shot.Config(path=str(path)), ENCODER, Setting())


def good(count: int) -> dict[str, bytes]:
    return {f"k{n}": solid(COLORS[n % 2]) for n in range(count)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            png_claiming(60_000, 60_000),
            "60000 x 60000 pixels exceed max_image_pixels 178956970; make it smaller",
        ),
        (b"<html>", "not readable as JPEG"),
    ],
)
def test_one_picture_that_cannot_be_decoded_is_a_miss_by_name(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    """A gray image is as near to red as to blue, and its class is blue."""
    result = evaluated(tmp_path, good(4) | {"k3": data})
    assert result.metrics["num_samples"] == 4
    assert result.metrics["num_undecodable"] == 1
    assert result.metrics["zeroshot-top1"] == 0.75
    (alarm,) = result.alarms
    assert alarm.startswith("1 images cannot be decoded and are scored as gray ones: test set")
    assert "0.tar/k3" in alarm
    assert reason in alarm


@pytest.mark.parametrize("count", [1, 2, 150])
def test_a_set_that_is_damaged_as_a_whole_is_refused(tmp_path: Path, count: int) -> None:
    pictures = good(count)
    num_bad = min(count, 3)
    pictures |= dict.fromkeys(list(pictures)[:num_bad], b"<html>")
    with pytest.raises(UserError, match=rf"k0 of .*\n{num_bad} of {count} images cannot be"):
        evaluated(tmp_path, pictures)


class Pair(Ranks):
    """Rank 1 of two; rank 0 has found row 64 to be bad."""

    rank, world_size = 1, 2

    def gather(self, value: Any) -> list[Any]:
        fault, own = value
        if own == 200:  # the size of the set
            other = own
        elif 70 in own:  # undecodable images by row
            other = {64: "of rank 0"}
        else:  # features by the first row of their batch
            other = {0: torch.ones(64, 3), 128: torch.ones(64, 3)}
        return [(fault, other), value]


def test_all_ranks_know_what_each_has_found() -> None:
    setting = Setting(ranks=Pair())

    def image(row: int) -> torch.Tensor:
        if row == 70:
            raise UndecodableImage("of rank 1")
        return torch.ones(3, 8, 8)

    embed_images(ENCODER, image, [str(n) for n in range(200)], setting)
    assert list(setting.undecodable) == ["of rank 0", "of rank 1"]
