"""Test samples from tables, folders and the held-out part of a run, and captions that repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import solid, write_test_set
from tiny_runs import COLORS, MODEL, picture, png
from torch import Tensor
from torch.nn import functional as F

from clipx.config import build, load, to_data
from clipx.data.config import DataConfig
from clipx.embed import Encoder
from clipx.eval_verb import chosen_evaluators
from clipx.evaluators import fairness, knn, linear_probe, retrieval, validation_loss, zero_shot
from clipx.evaluators.distributed import run_evaluator
from clipx.evaluators.retrieval import pair_ranks, retrieval_result
from clipx.evaluators.sample_source import PartOfRun, open_samples, with_held_out
from clipx.metrics import retrieval as blocks
from clipx.metrics.chance import chance_level
from clipx.models.dual_encoder import DualEncoder
from clipx.training.config import TrainConfig
from clipx.types import Setting, UserError

NUM = 80


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """products.csv of 80 pictures, two of each product, which share a title."""
    lines = ["picture,title,category,product_id"]
    (tmp_path / "pictures").mkdir()
    for n in range(NUM):
        product = n // 2
        color = list(COLORS)[product % 4]
        (tmp_path / f"pictures/{n:02d}.png").write_bytes(png(picture(color, "bar", n)))
        lines.append(f"pictures/{n:02d}.png,a {color} bar {product},{color}_things,{product}")
    (tmp_path / "products.csv").write_text("\n".join(lines))
    return tmp_path / "products.csv"


def source(table: Path) -> dict[str, str]:
    return {"name": "table", "path": str(table), "image_column": "picture"}


def data(table: Path, **changes: Any) -> DataConfig:
    values = {"sources": {"products": source(table)}, "caption_field": "title", "held_out": 0.3}
    return build(DataConfig, values | changes, where="of the test")


def config(module: Any, **values: Any) -> Any:
    return build(module.Config, values, where="of the test")


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(DualEncoder(MODEL), MODEL)


# --- reading ---


def test_a_table_gives_the_captions_and_classes_of_its_rows(table: Path) -> None:
    captioned = config(retrieval, source=source(table), caption_field="title").read()
    assert captioned.captions[:3] == ["a red bar 0", "a red bar 0", "a green bar 1"]
    assert captioned.owner.tolist() == list(range(NUM))
    assert captioned.num_distinct == NUM // 2
    assert captioned.images.keys[1] == "products.csv#0/00000001:pictures/01.png"
    assert torch.equal(captioned.images.image(1)[:, 4, 4], torch.tensor(COLORS["red"]).byte())
    assert captioned.right_captions(2).nonzero().flatten().tolist() == [2, 3]
    assert captioned.right_images(3).nonzero().flatten().tolist() == [2, 3]

    evaluator = config(zero_shot, source=source(table), label_field="category").build()
    assert evaluator.set.names == ["blue things", "gray things", "green things", "red things"]
    assert evaluator.set.label[:4].tolist() == [3, 3, 2, 2]
    assert evaluator.templates == ["{c}"]


def test_a_folder_has_all_captions_of_an_image_each_once(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(solid((n, 0, 0)))
        captions = [f"one {n}", "Both", f"one {n}", "both "]
        (tmp_path / f"{n}.json").write_text(json.dumps({"captions": captions, "kind": n}))
    folder = {"name": "folder", "path": str(tmp_path)}
    captioned = config(retrieval, source=folder).read()
    assert captioned.captions == ["one 0", "Both", "one 1", "Both"]
    assert captioned.owner.tolist() == [0, 0, 1, 1]
    assert captioned.text_ids.tolist() == [0, 1, 2, 1]
    assert config(zero_shot, source=folder, label_field="kind").build().set.names == ["0", "1"]


def test_labels_are_names_or_numbers_of_a_list(table: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red things\ngray things\ngreen things\nblue things\nother things\n")
    settings = {"source": source(table), "classes": str(names)}
    labeled = config(zero_shot, label_field="category", **settings).build().set
    assert labeled.label[:4].tolist() == [0, 0, 2, 2]
    assert len(labeled.names) == 5
    names.write_text("\n".join(f"product {n}" for n in range(NUM // 2)))
    labeled = config(zero_shot, label_field="product_id", **settings).build().set
    assert labeled.label[:4].tolist() == [0, 0, 1, 1]
    names.write_text("a\nb\n")
    with pytest.raises(UserError, match=r"neither one of the 2 names of .* nor a number"):
        config(zero_shot, label_field="category", **settings).build()


@pytest.mark.parametrize(
    ("module", "values", "message"),
    [
        (retrieval, {"caption_field": "name"}, "test sample products.csv#0/.*no text in name"),
        (zero_shot, {}, "needs label_field"),
        (zero_shot, {"label_field": "kind"}, "test sample .*no kind; fields there: .*category"),
        (zero_shot, {"label_field": "category", "path": "x"}, "are two test sets"),
        (zero_shot, {"label_field": "category", "split": "x"}, "a `source` has none"),
        (linear_probe, {"label_field": "category"}, "needs train_source"),
        (
            zero_shot,
            {"label_field": "category", "classes": "objectnet"},
            "classes 'objectnet' of the source .*products.csv.* neither a file nor one of imagenet",
        ),
    ],
)
def test_settings_that_do_not_fit_a_source_are_refused(
    module: Any, values: dict[str, Any], message: str, table: Path
) -> None:
    with pytest.raises(UserError, match=message):
        config(module, source=source(table), **values).build()


@pytest.mark.parametrize(
    ("module", "values", "message"),
    [
        (zero_shot, {}, "needs a `path`, or a `source`"),
        (retrieval, {}, "needs a `path`, or a `source`"),
        (retrieval, {"path": "x", "caption_field": "title"}, "belongs to a `source`"),
        (zero_shot, {"path": "x", "label_field": "a", "templates": ["{c}"]}, "to a `source`"),
        (zero_shot, {"path": "x", "templates": ["a picture"]}, "no place for the class name"),
        (zero_shot, {"path": "x", "templates": []}, "empty list"),
        (knn, {"path": "x", "train_source": "held_out"}, "belongs to a `source`"),
        (validation_loss, {"source": "held_out"}, "there is no run"),
    ],
)
def test_settings_of_neither_kind_are_refused(
    module: Any, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(module, **values).build()


# --- the held-out part ---


def test_the_word_stands_for_that_part_of_the_runs_corpus(table: Path) -> None:
    corpus = data(table, held_out_by="product_id")
    names = {"classes": config(zero_shot, source="held_out", label_field="category")}
    names["pairs"] = config(retrieval, source="held_out")
    names["loss"] = config(validation_loss, source="held_out", batch_size=8)
    inner = {"name": "retrieval", "source": "held_out"}
    names["slices"] = config(fairness, of=inner, table="x.csv", column="a")
    assert to_data(names["pairs"])["source"] == "held_out"
    resolved = with_held_out(names, corpus)
    assert resolved["slices"].of.source == PartOfRun(corpus)

    held_out = corpus.open(seed=0, part="held_out")
    expected = []
    for number in range(int(held_out.sizes.sum())):
        expected.append(f"products.csv#0/{held_out.key(*held_out.place_of(number))}")
    assert 0 < len(expected) < NUM
    for name in ("classes", "pairs"):
        assert resolved[name].build().set.images.keys == expected
    assert resolved["loss"].build().images.keys == expected
    # The captions are those of the run, without being named again.
    assert resolved["pairs"].build().set.captions[0].startswith("a ")
    result = run_evaluator(resolved["classes"], encoder(), Setting())
    assert result.metrics["num_samples"] == len(expected)
    assert "zeroshot-top1" in result.intervals


def test_a_probe_of_the_held_out_part_is_trained_on_the_rest(table: Path) -> None:
    corpus = data(table)
    probe = config(knn, source="held_out", label_field="category", k=3)
    evaluator = with_held_out({"a": probe}, corpus)["a"].build()
    train = set(evaluator.train.images.keys)
    test = set(evaluator.test.images.keys)
    assert not train & test
    assert len(train | test) == NUM
    assert evaluator.train.names == evaluator.test.names


def test_samples_of_the_skip_list_are_left_out(table: Path, tmp_path: Path) -> None:
    whole = open_samples(PartOfRun(data(table)))
    skipped = whole.keys[0].partition("/")[2]
    line = json.dumps({"shard": f"{table}#0", "key": skipped})
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    rest = open_samples(PartOfRun(data(table, skip=str(tmp_path / "bad.jsonl"))))
    assert rest.keys == whole.keys[1:]


def test_evaluators_of_a_run_and_of_other_models(table: Path, tmp_path: Path) -> None:
    """`clipx eval`: the run's own part, also for another model by --suite, and none without one."""
    run = tmp_path / "run"
    run.mkdir()
    overrides = [
        f"run_dir={run}",
        f"data={json.dumps(to_data(data(table)))}",
        "model.name=ViT-B-32",
        "duration=1 steps",
        "global_batch_size=8",
        "evaluators.pairs={name: retrieval, source: held_out}",
    ]
    from clipx.config import to_yaml

    (run / "config.yaml").write_text(to_yaml(load(TrainConfig, None, overrides)))
    expected = PartOfRun(data(table))
    assert chosen_evaluators(str(run), [], None, [])["pairs"].source == expected
    suite = run / "config.yaml"
    assert chosen_evaluators("open_clip:a/b", [], suite, [])["pairs"].source == expected
    own = tmp_path / "suite.yaml"
    own.write_text("evaluators: {pairs: {name: retrieval, source: held_out}}")
    assert chosen_evaluators(str(run), [], own, [])["pairs"].source == expected
    with pytest.raises(UserError, match=r"evaluators\.pairs: .*the model is none"):
        chosen_evaluators("open_clip:a/b", [], own, [])


def test_a_corpus_without_a_held_out_part_is_named(table: Path) -> None:
    evaluators = with_held_out({"a": config(retrieval, source="held_out")}, data(table, held_out=0))
    with pytest.raises(UserError, match=r"set data\.held_out"):
        evaluators["a"].build()


# --- captions that repeat ---


def dense(image: Tensor, text: Tensor, owner: Tensor, ids: Tensor) -> dict[str, float]:
    """The definitions on the whole matrix, text by text: a text is right with each image that has
    it, and is one candidate however many have it."""
    texts = ids.unique()
    first = torch.stack([(ids == one).nonzero()[0, 0] for one in texts])
    scores = image @ text[first].T
    match = torch.zeros(len(image), len(texts), dtype=torch.bool)
    match[owner, torch.searchsorted(texts, ids)] = True
    out: dict[str, float] = {}
    for direction, s, m in (("image_to_text", scores, match), ("text_to_image", scores.T, match.T)):
        # A text counts as often as images have it.
        weight = m.sum(1).double() if direction == "text_to_image" else torch.ones(len(s)).double()
        sorted_match = m.gather(1, s.argsort(1, descending=True)).double()
        place = torch.arange(1, s.shape[1] + 1)
        found = sorted_match.cumsum(1) - sorted_match  # right answers before each
        # The rank of a right answer does not count the other right answers.
        first_hit = sorted_match.argmax(1) + 1
        for k in (1, 5):
            hits = (first_hit <= k).double()
            out[f"{direction}_R@{k}"] = float((hits * weight).sum() / weight.sum())
        precision = ((found + 1) / place * sorted_match).sum(1) / sorted_match.sum(1)
        out[f"{direction}_mAP"] = float((precision * weight).sum() / weight.sum())
    return out


@settings(deadline=None, max_examples=25)
@given(
    captions=st.lists(
        st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True), min_size=2, max_size=20
    ),
    size=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
def test_repeated_captions_are_right_with_each_image_that_has_them(
    captions: list[list[int]], size: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.tensor([n for n, own in enumerate(captions) for _ in own])
    _, ids = torch.tensor([one for own in captions for one in own]).unique(return_inverse=True)
    image = F.normalize(torch.randn(len(captions), 8, generator=generator), dim=-1)
    text = F.normalize(torch.randn(7, 8, generator=generator), dim=-1)[ids]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "IMAGES_PER_BLOCK", size[0])
        patch.setattr(blocks, "CAPTIONS_PER_BLOCK", size[1])
        ranks = pair_ranks(image, text, owner, Setting(), ids)
        found = retrieval_result(ranks, [str(n) for n in range(len(image))])
    for name, value in dense(image, text, owner, ids).items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-9), name
        if name in found.intervals:  # not for fewer than two trials
            low, high = found.intervals[name]
            assert low <= value <= high
    assert found.metrics["num_captions"] == len(ids.unique())


def test_copies_of_a_caption_count_as_one_trial() -> None:
    """Ten pictures of each product with one title: the interval is that of ten titles."""
    ids = torch.arange(10).repeat_interleave(10)
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(10, 16, generator=generator), dim=-1)
    noise = torch.randn(100, 16, generator=generator)
    image = F.normalize(text[ids] + 0.7 * noise, dim=-1)
    ranks = pair_ranks(image, text[ids], torch.arange(100), Setting(), ids)
    result = retrieval_result(ranks, [str(n) for n in range(100)])
    assert int((result.weights["text_to_image_R@1"] > 0).sum()) == 10
    low, high = result.intervals["text_to_image_R@5"]
    assert high - low > 0.2
    assert chance_level("image_to_text_R@1", result.metrics) is None


def test_a_test_set_on_disk_keeps_its_meaning(tmp_path: Path) -> None:
    """As CLIP_benchmark: another image's caption is wrong, though it reads the same."""
    samples = {name: {"png": solid((n, 0, 0)), "txt": "same"} for n, name in enumerate("ab")}
    captioned = config(retrieval, path=str(write_test_set(tmp_path, samples))).read()
    assert captioned.text_ids is None
    assert captioned.right_captions(0).tolist() == [True, False]
