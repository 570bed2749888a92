"""`cluster_by`: the pictures of one product count as one trial in intervals and in `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from color_encoder import ColorEncoder
from tiny_runs import COLORS, picture, png
from torch.nn import functional as F

from clipx.comparison import compare
from clipx.config import build
from clipx.data.config import DataConfig
from clipx.eval_verb import print_comparison, print_table
from clipx.evaluators import (
    dedup,
    embedding_health,
    knn,
    linear_probe,
    prompt_sensitivity,
    retrieval,
    robustness,
    typographic,
    zero_shot,
)
from clipx.evaluators.distributed import run_evaluator
from clipx.evaluators.sample_source import with_held_out
from clipx.results import write_results
from clipx.types import Result, Setting, UserError

NUM = 60
COPIES = {"once.csv": 1, "twice.csv": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of 60 products, with one picture of each and with two copies of it."""
    (tmp_path / "pictures").mkdir()
    for n in range(NUM):
        (tmp_path / f"pictures/{n:02d}.png").write_bytes(png(picture("red", "bar", n)))
    for name, copies in COPIES.items():
        lines = ["picture,title,category,product_id"]
        for n in range(NUM):
            row = f"pictures/{n:02d}.png,title {n},{list(COLORS)[n % 4]},{n}"
            lines += copies * [row]
        (tmp_path / name).write_text("\n".join(lines))
    return tmp_path


def source(folder: Path, name: str) -> dict[str, str]:
    return {"name": "table", "path": str(folder / name), "image_column": "picture"}


def config(module: Any, **values: Any) -> Any:
    return build(module.Config, values, where="of the test")


def encoder() -> ColorEncoder:
    """Pictures are the color of a pixel of noise."""
    generator = torch.Generator().manual_seed(0)
    texts = {}
    for name, color in COLORS.items():
        for template in ("{}", "a {}"):
            noisy = torch.tensor(color).float() + 60 * torch.rand(3, generator=generator)
            texts[template.format(name)] = F.normalize(noisy, dim=0).tolist()
    for n in range(NUM):
        texts[f"title {n}"] = F.normalize(torch.rand(3, generator=generator), dim=0).tolist()
    return ColorEncoder(texts)


def evaluated(module: Any, folder: Path, name: str, **values: Any) -> Result:
    settings = {"source": source(folder, name), **values}
    return run_evaluator(config(module, **settings), encoder(), Setting())


CLASSIFIERS = [
    (zero_shot, {}),
    (prompt_sensitivity, {"templates": ["{c}", "a {c}"]}),
    (robustness, {"corruptions": ["contrast"], "severities": [1, 5]}),
    (knn, {"k": 3}),
    (linear_probe, {"strength": 1.0}),
]


@pytest.mark.parametrize(("module", "values"), CLASSIFIERS)
def test_two_copies_of_each_picture_give_the_intervals_of_one(
    module: Any, values: dict[str, Any], folder: Path
) -> None:
    values = {"label_field": "category", **values}
    if module in (knn, linear_probe):
        values["train_source"] = source(folder, "once.csv")
    once = evaluated(module, folder, "once.csv", **values)
    twice = evaluated(module, folder, "twice.csv", cluster_by="product_id", **values)
    assert (twice.metrics["num_samples"], twice.metrics["num_clusters"]) == (2 * NUM, NUM)
    assert once.intervals
    for name, interval in once.intervals.items():
        assert twice.metrics[name] == pytest.approx(once.metrics[name])
        assert twice.intervals[name] == pytest.approx(interval, rel=1e-9), name
    for title, rows in once.tables.items():
        for row, row_twice in zip(rows, twice.tables[title], strict=True):
            if "low" in row:
                assert (row_twice["low"], row_twice["high"]) == pytest.approx(
                    (row["low"], row["high"]), rel=1e-9
                )


def test_other_evaluators_have_the_clusters_too(folder: Path) -> None:
    captions = {"caption_field": "title", "cluster_by": "product_id"}
    pairs = evaluated(retrieval, folder, "twice.csv", **captions)
    assert pairs.metrics["num_clusters"] == NUM
    once = evaluated(embedding_health, folder, "once.csv", caption_field="title").intervals
    twice = evaluated(embedding_health, folder, "twice.csv", **captions).intervals
    assert twice["alignment"] == pytest.approx(once["alignment"], rel=1e-9)
    assert "modality_gap" not in twice
    labels = {"label_field": "category", "cluster_by": "product_id", "limit": 10}
    attacked = evaluated(typographic, folder, "twice.csv", **labels)
    assert attacked.clusters is not None
    assert (len(attacked.clusters), attacked.metrics["num_clusters"]) == (10, 10)


def test_the_held_out_part_has_the_clusters_by_which_it_is_held_out(folder: Path) -> None:
    data = {"sources": {"products": source(folder, "twice.csv")}, "held_out": 0.4}
    evaluators = {
        "classes": config(zero_shot, source="held_out", label_field="category"),
        "probe": config(knn, source="held_out", label_field="category", k=1),
        "pairs": config(retrieval, source="held_out", caption_field="title"),
    }
    by_product = build(DataConfig, {**data, "held_out_by": "product_id"}, where="of the test")
    for name, evaluator in with_held_out(evaluators, by_product).items():
        built = evaluator.build()
        images = built.test.images if name == "probe" else built.set.images
        assert len(images.clusters.unique()) == len(images) // 2
        if name == "probe":
            assert built.train.images.clusters is None
    by_picture = build(DataConfig, data, where="of the test")
    for name in ("classes", "pairs"):
        assert with_held_out(evaluators, by_picture)[name].build().set.images.clusters is None


def test_a_sample_without_the_field_is_a_cluster_by_itself(folder: Path) -> None:
    lines = (folder / "twice.csv").read_text().splitlines()
    lines[1:5] = [line.rpartition(",")[0] + "," for line in lines[1:5]]
    (folder / "twice.csv").write_text("\n".join(lines))
    settings = {"label_field": "category", "cluster_by": "product_id"}
    found = evaluated(zero_shot, folder, "twice.csv", **settings)
    assert found.metrics["num_clusters"] == NUM - 2 + 4


@pytest.mark.parametrize(
    ("module", "values", "message"),
    [
        (zero_shot, {"source": True, "label_field": "category"}, "no sample of .* has it; no sku;"),
        (retrieval, {"source": True, "caption_field": "title"}, "no sample of .* has it; no sku;"),
        (dedup, {"source": True, "label_field": "product_id"}, "duplicates are the clusters"),
        (zero_shot, {"path": "x", "templates": ["{c}"]}, "belong to a `source`"),
        (retrieval, {"path": "x"}, "belongs to a `source`"),
    ],
)
def test_clusters_that_cannot_be_are_refused(
    module: Any, values: dict[str, Any], message: str, folder: Path
) -> None:
    if "source" in values:
        values = {**values, "source": source(folder, "twice.csv")}
    with pytest.raises(UserError, match=message):
        config(module, cluster_by="sku", **values).build()


def test_a_comparison_is_by_clusters_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {}
    for name, copies in COPIES.items():
        for model in range(2):
            generator = torch.Generator().manual_seed(model)
            values = torch.rand(NUM, generator=generator, dtype=torch.float64)
            values = (values < 0.5 + 0.2 * model).double().repeat_interleave(copies)
            clusters = torch.arange(NUM).repeat_interleave(2) if copies == 2 else None
            result = Result(keys=[str(n) for n in range(len(values))], clusters=clusters)
            result.samples["top1"] = values
            result.add("top1", values.mean().item())
            result.add("num_samples", len(values))
            if clusters is not None:
                result.add("num_clusters", NUM)
            folders[name, model] = folder / f"{name}-{model}"
            write_results(folders[name, model], "model", {"set": result})
            print_table("model", {"set": result})
    assert "120 in 60 clusters" in capsys.readouterr().out

    (once,) = compare(folders["once.csv", 0], folders["once.csv", 1])
    (twice,) = compare(folders["twice.csv", 0], folders["twice.csv", 1])
    assert (twice.num_samples, twice.num_clusters) == (120, 60)
    assert (twice.p, twice.low, twice.high) == (once.p, once.low, once.high)
    print_comparison([twice])
    assert "120 in 60 clusters" in capsys.readouterr().out

    file = folders["twice.csv", 1] / "samples/set.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{name: array for name, array in arrays.items() if name != "clusters"})
    assert compare(folders["twice.csv", 0], folders["twice.csv", 1]) == [twice]
    np.savez(file, **{**arrays, "clusters": np.arange(120)})
    with pytest.raises(UserError, match="other clusters in one of the two"):
        compare(folders["twice.csv", 0], folders["twice.csv", 1])
