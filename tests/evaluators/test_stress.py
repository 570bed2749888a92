"""Corruptions, written words, wordings, slices and the health of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from color_encoder import ColorEncoder
from PIL import Image
from samples import picture, solid, write_test_set
from torch import Tensor
from torch.nn import functional as F

from clipx import metrics
from clipx.config import build
from clipx.data.preprocessing import Preprocessing, center
from clipx.eval_verb import Suite
from clipx.evaluators import (
    embedding_health,
    fairness,
    prompt_sensitivity,
    robustness,
    typographic,
    zero_shot,
)
from clipx.evaluators.corruptions import CORRUPTIONS, corrupt
from clipx.evaluators.embedding_health import health
from clipx.evaluators.fairness import slice_result
from clipx.evaluators.retrieval import retrieval_result
from clipx.evaluators.typographic import written_on
from clipx.types import Result, Setting, UserError


class Bright:
    """Sees only how bright a picture is: bright ones are class 0, dark ones class 1."""

    image_size, scale = 32, 1.0

    def fit(self, image: Tensor) -> Tensor:
        return center(image, self.image_size)

    def encode_image(self, images: Any) -> Tensor:
        bright = torch.stack([image.float().mean() / 255 for image in images])
        return F.normalize(torch.stack([bright, 1 - bright], dim=1), dim=-1)

    def encode_text(self, texts: list[str]) -> Tensor:
        return torch.tensor([[1.0, 0] if "bright" in text else [0, 1] for text in texts])

    def text_digest(self) -> str:
        return "bright"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = {
        f"{n}": {"png": solid((200,) * 3 if n % 2 == 0 else (110,) * 3), "cls": str(n % 2)}
        for n in range(8)
    }
    return write_test_set(
        tmp_path / "set",
        samples,
        classnames=["bright", "dark"],
        zeroshot_classification_templates=["a {c} picture", "{c}"],
    )


def png_of(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def distance(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_severity_and_keeps_the_size(name: str) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (64, 96, 3), dtype=np.uint8)
    image = Image.blend(picture(3, (96, 64)), Image.fromarray(pixels), 0.5)
    corrupted = [corrupt(image, name, s, np.random.default_rng(5)) for s in range(1, 6)]
    assert {c.size for c in corrupted} == {(96, 64)}
    far = [distance(image, c) for c in corrupted]
    assert far[0] > 0.1
    # What a far rotation brings into view is gray, which may lie nearer than what it took away.
    assert all(b > 0.95 * a for a, b in pairwise(far)), far
    assert far[-1] > 1.2 * far[0]
    again = corrupt(image, name, 3, np.random.default_rng(5))
    assert distance(again, corrupted[2]) == 0


def test_accuracy_under_corruption_by_hand(folder: Path) -> None:
    """Brightness adds 0.1 to 0.5: 110 / 255 = 0.43 is taken for bright from 0.1 on."""
    config = robustness.Config(
        path=str(folder), corruptions=["brightness", "jpeg"], severities=[1, 5]
    )
    found = config.build().evaluate(Bright(), Setting())
    assert found.metrics["clean-top1"] == 1.0
    assert found.metrics["brightness-top1"] == 0.5
    assert found.metrics["jpeg-top1"] == 1.0
    assert found.metrics["corrupted-top1"] == found.metrics["relative-top1"] == 0.75
    low, high = found.intervals["relative-top1"]
    assert low < 0.75 < high
    rows = {(r["corruption"], r["severity"]): r["top1"] for r in found.tables["severities"]}
    assert rows == {
        ("brightness", 1): 0.5,
        ("brightness", 5): 0.5,
        ("jpeg", 1): 1.0,
        ("jpeg", 5): 1.0,
    }
    with pytest.raises(UserError, match="corruption 'fog' is none of gaussian_noise, shot_noise"):
        robustness.Config(path=str(folder), corruptions=["fog"]).build()
    assert len(robustness.Config(path=str(folder), limit=3).build().set) == 3


class Wide(Bright):
    """Sees whether the left and the right edge differ; squashes, as SigLIP does."""

    def fit(self, image: Tensor) -> Tensor:
        return Preprocessing(resize_mode="squash").fit(image, self.image_size)

    def encode_image(self, images: Any) -> Tensor:
        fitted = [self.fit(image).float() / 255 for image in images]
        differs = [float((x[..., 0] - x[..., -1]).abs().mean() > 0.2) for x in fitted]
        bright = torch.tensor(differs)
        return torch.stack([bright, 1 - bright], dim=1)


def test_an_identity_corruption_costs_nothing_whatever_the_resize_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edges that a center crop would cut off decide the class here."""
    edges = Image.new("RGB", (96, 32), (90, 90, 90))
    edges.paste((250, 250, 250), (0, 0, 12, 32))
    plain = Image.new("RGB", (96, 32), (90, 90, 90))
    folder = write_test_set(
        tmp_path / "wide",
        {f"{n}": {"png": png_of([edges, plain][n % 2]), "cls": str(n % 2)} for n in range(6)},
        classnames=["bright", "dark"],
        zeroshot_classification_templates=["{c}"],
    )
    monkeypatch.setattr(robustness, "corrupt", lambda image, name, severity, random: image)
    config = robustness.Config(path=str(folder), corruptions=["jpeg"], severities=[1])
    found = config.build().evaluate(Wide(), Setting()).metrics
    assert found["clean-top1"] == 1.0
    assert found["relative-top1"] == 1.0
    attacked = typographic.Config(path=str(folder)).build()
    monkeypatch.setattr(typographic, "written_on", lambda image, text: image)
    found = attacked.evaluate(Wide(), Setting()).metrics
    assert found["attacked-top1"] == found["clean-top1"] == 1.0


def test_what_is_written_is_another_class_and_fits_the_picture(folder: Path) -> None:
    evaluator = typographic.Config(path=str(folder)).build()
    assert not (evaluator.written == evaluator.set.label).any()
    found = evaluator.evaluate(Bright(), Setting()).metrics
    assert found["clean-top1"] == 1.0
    assert found["attacked-top1"] + found["read_share"] == 1.0  # two classes
    gray = Image.new("RGB", (64, 48), (128, 128, 128))
    for text in ("x", "a rather long name of a class"):
        pixels = np.asarray(written_on(gray, text))
        assert (pixels == 255).any(), "the label"
        assert pixels.min() < 110, "the letters"
        assert (pixels[:3] == 128).all(), "not over the edge"


class Worded(Bright):
    """Takes `a bright picture` for a dark one."""

    def encode_text(self, texts: list[str]) -> Tensor:
        rows = {"a bright picture": [0.0, 1], "a dark picture": [1.0, 0]}
        plain = super().encode_text(texts)
        return torch.stack(
            [torch.tensor(rows[t]) if t in rows else p for t, p in zip(texts, plain, strict=True)]
        )


def test_the_spread_over_wordings_by_hand(folder: Path) -> None:
    found = prompt_sensitivity.Config(path=str(folder)).build().evaluate(Worded(), Setting())
    assert found.metrics["best-top1"] == 1.0
    assert found.metrics["worst-top1"] == 0.0
    assert found.metrics["template_gap"] == 1.0
    assert found.metrics["single-top1"] == 0.5
    templates = [(row["template"], row["top1"]) for row in found.tables["templates"]]
    assert templates == [("a {c} picture", 0.0), ("{c}", 1.0)]
    assert "template_gap" not in found.intervals
    assert found.intervals["worst-top1"][0] == 0.0
    assert found.intervals["best-top1"][1] == 1.0


def sliced(values: list[float], slices: list[str]) -> Result:
    whole = Result({}, keys=[str(n) for n in range(len(values))])
    whole.samples["hit"] = torch.tensor(values, dtype=torch.float64)
    return slice_result(whole, slices)


def test_slices_by_hand() -> None:
    found = sliced([1, 1, 1, 0, 0, 1, 0, 0], list("aaaabbbb"))
    assert found.metrics["hit"] == 0.5
    assert found.metrics["hit-worst_slice"] == 0.25
    assert found.metrics["hit-slice_gap"] == 0.5
    assert [(r["slice"], r["value"], r["samples"]) for r in found.tables["slices"]] == [
        ("b", 0.25, 4),
        ("a", 0.75, 4),
    ]
    low, high = found.intervals["hit-worst_slice"]
    assert low < 0.25 < high


def test_slices_weigh_captions_as_the_evaluator_does() -> None:
    """An image with three captions found and one with one that is not: 3 of 4, not 1 of 2."""
    closer = torch.tensor([0, 0, 0, 1, 0, 1])
    ranks = metrics.PairRanks(closer, closer, torch.tensor([0, 0, 0, 1, 2, 2]))
    whole = retrieval_result(ranks, ["0", "1", "2"])
    found = slice_result(whole, ["a", "a", "b"])
    name = "text_to_image_R@1"
    assert found.metrics[name] == whole.metrics[name] == pytest.approx(4 / 6)
    rows = {r["slice"]: r["value"] for r in found.tables["slices"] if r["metric"] == name}
    assert rows == pytest.approx({"a": 3 / 4, "b": 1 / 2})
    assert found.intervals[name] == whole.intervals[name]


def test_maxima_are_corrected_for_their_selection_and_gaps_have_no_interval() -> None:
    """30 equal slices of 40: the worst alone would have an interval that misses the truth."""
    values = torch.bernoulli(torch.full((1200,), 0.5), generator=torch.Generator().manual_seed(0))
    found = sliced(values.tolist(), [f"{n // 40:02}" for n in range(1200)])
    low, high = found.intervals["hit-worst_slice"]
    worst = found.tables["slices"][0]
    assert worst["high"] < 0.5 < high
    assert low <= worst["low"]
    assert "hit-slice_gap" not in found.intervals
    assert found.metrics["hit-slice_gap"] > 0.25


def test_any_evaluator_is_sliced_by_a_column_of_a_table(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "slices.csv"
    rows = [f"0.tar/{n},{'day' if n < 4 else 'night'}" for n in range(8)]
    table.write_text("\n".join(["key,light", *rows]))
    data: dict[str, Any] = {
        "name": "fairness",
        "of": {"name": "zero_shot", "path": str(folder)},
        "table": str(table),
        "column": "light",
    }
    config = build(Suite, {"evaluators": {"a": data}}, where="a test").evaluators["a"]
    assert config.of == zero_shot.Config(path=str(folder))
    found = config.build().evaluate(Bright(), Setting())
    assert found.metrics["zeroshot-top1-worst_slice"] == 1.0
    assert found.metrics["num_slices"] == 2
    with pytest.raises(UserError, match=r"has no column 'skin', but key, light"):
        fairness.read_column(table, "skin")
    table.write_text("\n".join(["key,light", *(f"0.tar/{n},day" for n in range(8))]))
    with pytest.raises(UserError, match="all 8 samples are in one slice, 'day'"):
        config.build().evaluate(Bright(), Setting())
    table.write_text("\n".join(["key,light", *rows[:-2]]))
    with pytest.raises(UserError, match=r"lacks 2 of 8 samples, first 0\.tar/6"):
        config.build().evaluate(Bright(), Setting())


def spread(seed: int) -> Tensor:
    return F.normalize(torch.randn(300, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_healthy_space_raises_no_alarm() -> None:
    found = health(spread(0), F.normalize(spread(0) + spread(1), dim=-1))
    assert found.alarms == []
    assert found.metrics["image_effective_rank"] > 28
    assert found.metrics["image_dead_share"] == 0
    low, high = found.intervals["alignment"]
    assert low < found.metrics["alignment"] < high


@pytest.mark.parametrize(
    ("image", "alarm"),
    [
        (lambda: F.normalize(torch.ones(300, 32) + 0.01 * spread(0), dim=-1), "image .*collapse"),
        (lambda: torch.eye(32)[[0, 1] * 150], "image embeddings collapse: effective rank 1.0"),
        (lambda: F.pad(spread(0)[:, :8], (0, 24)), "75% of the image dimensions hardly vary"),
    ],
)
def test_a_collapse_raises_an_alarm(image: Callable[[], Tensor], alarm: str) -> None:
    assert any(_found(alarm, text) for text in health(image(), spread(1)).alarms)


def _found(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text) is not None


def test_health_of_a_set_takes_the_first_caption_of_each_image(tmp_path: Path) -> None:
    colors = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "other": [0, 0, 1.0]}
    path = write_test_set(
        tmp_path,
        {
            "0": {"png": solid((255, 0, 0)), "txt": "red\nother"},
            "1": {"png": solid((0, 255, 0)), "txt": "green"},
        },
    )
    config = embedding_health.Config(path=str(path))
    found = config.build().evaluate(ColorEncoder(colors), Setting())
    assert found.metrics["alignment"] == pytest.approx(0)
    assert found.metrics["num_samples"] == 2
    assert found.alarms == []  # two images have a low rank in any space
    write_test_set(tmp_path / "one", {"0": {"png": solid((255, 0, 0)), "txt": "red"}})
    with pytest.raises(UserError, match="has one image: there is no space to look at"):
        embedding_health.Config(path=str(tmp_path / "one")).build()
