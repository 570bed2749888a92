"""Searching embeddings by text, by picture and by several with signs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_checkpoints
import torch
from samples import pair, picture, write_shard
from tiny_runs import MODEL
from torch.nn import functional as F

import clipx
from clipx import cli
from clipx.evaluators import retrieval
from clipx.models.dual_encoder import DualEncoder
from clipx.search.query import Index, Term
from clipx.types import Setting, UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(embeddings of 40 samples in two parts, their model)"""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("search")
    model = small_checkpoints.save(folder / "m", 1, model=DualEncoder(MODEL), model_json=MODEL)
    samples: dict[str, Any] = {}
    for n in range(40):
        members = pair(n)
        about = {"captions": [f"picture {n}"], "price": n, "shop": "here" if n % 2 else "There"}
        samples[f"k{n:02d}"] = {**members, "json": about, "txt": f"picture {n}"}
    write_shard(folder / "corpus/0.tar", samples)
    out = folder / "out"
    settings = ["--part-size", "25", "--precision", "fp32", "--dtype", "float32"]
    cli.main(["embed", str(model), str(folder / "corpus"), "--out", str(out), *settings])
    return out, model


@pytest.fixture(scope="module")
def index(made: tuple[Path, Path]) -> Index:
    return clipx.Index.open(made[0])


def test_recall_is_that_of_the_retrieval_evaluator(
    index: Index, made: tuple[Path, Path], tmp_path: Path
) -> None:
    """Of each caption among all images, for each rate that it reports."""
    (tmp_path / "set/test").mkdir(parents=True)
    shutil.copy(made[0].parent / "corpus/0.tar", tmp_path / "set/test/0.tar")
    (tmp_path / "set/test/nshards.txt").write_text("1\n")
    evaluator = retrieval.Config(path=str(tmp_path / "set")).build()
    result = evaluator.evaluate(index.encoder, Setting())
    places = []
    for row in range(len(index.rows)):
        caption = index.metadata_of(row)["caption"]
        hits = index.search(text=caption, k=len(index.rows))
        places.append([hit.row for hit in hits].index(row))
    for k in (1, 5, 10):
        hits = torch.tensor(places) < k
        assert result.metrics[f"text_to_image_R@{k}"] == pytest.approx(hits.double().mean().item())
        assert torch.equal(result.samples[f"text_to_image_R@{k}"], hits.double())


def test_an_index_shows_what_it_is(index: Index, made: tuple[Path, Path]) -> None:
    folder, model = made
    assert repr(index) == f"Index({folder}: 40 rows, D = 16, exact, model {model})"


def test_a_picture_finds_itself_with_its_metadata(index: Index) -> None:
    (hit,) = index.search(image=picture(8), k=1)
    assert hit.metadata["key"] == "k08"
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert (hit.metadata["price"], hit.metadata["shop"]) == (8, "There")
    assert (hit.metadata["width"], hit.metadata["height"]) == (20, 16)


def test_terms_are_added_with_their_signs(index: Index) -> None:
    near, far = index.encoder.encode_text(["picture 3", "picture 4"])
    image = index.encoder.encode_image(picture(6))[0]
    terms = [Term(1, text="picture 3"), Term(-1, text="picture 4"), Term(1, image=picture(6))]
    torch.testing.assert_close(index.embed(terms), F.normalize(near - far + image, dim=0))
    assert [h.row for h in index.search(terms=terms, k=3)] == [
        h.row for h in index.search(vector=near - far + image, k=3)
    ]
    with pytest.raises(UserError, match="cancel each other out"):
        index.search(terms=[Term(1, text="a"), Term(-1, text="a")])
    with pytest.raises(UserError, match="needs a text or an image"):
        index.search()


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ("price < 3", lambda n: n < 3),
        ("price >= 38", lambda n: n >= 38),
        ("price = 7", lambda n: n == 7),
        ("price != 7 and price < 9", lambda n: n < 9 and n != 7),
        ("shop = here", lambda n: n % 2 == 1),
        ("shop ~ HER", lambda n: True),
        ("not shop = here and price <= 4", lambda n: n % 2 == 0 and n <= 4),
        ("key = 'k05'", lambda n: n == 5),
    ],
)
def test_a_condition_leaves_the_samples_that_pass(
    index: Index, condition: str, passes: Any
) -> None:
    everything = [hit.row for hit in index.search(text="picture 9", k=40)]
    found = [hit.row for hit in index.search(text="picture 9", k=40, where=condition)]
    assert found == [row for row in everything if passes(row)]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("prise < 3", "there is no column prise; there are key, caption"),
        ("price", "is not of the form `column = value`"),
        ("price < cheap", "price is int64, not 'cheap'"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(
    index: Index, condition: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        index.search(text="picture", where=condition)


def test_captions_are_searched_too(made: tuple[Path, Path]) -> None:
    captions = Index.open(made[0], modality="text")
    (hit,) = captions.search(text="picture 11", k=1)
    assert hit.metadata["caption"] == "picture 11"


def test_the_command_line(made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(made[0])
    cli.main(["search", folder, "picture 3", "-", "picture 4", "-k", "2", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    terms = [Term(1, text="picture 3"), Term(-1, text="picture 4")]
    expected = Index.open(folder).search(terms=terms, k=2)
    assert [line["key"] for line in lines] == [hit.metadata["key"] for hit in expected]
    cli.main(["index", folder, "--kind", "hnsw"])
    assert "recall@10" in capsys.readouterr().out
    cli.main(["search", folder, "picture 3", "-k", "1"])
    assert "k" in capsys.readouterr().out
    assert Index.open(folder).vectors.spec.kind == "hnsw"
    assert Index.open(folder, exact=True).vectors.spec.kind == "exact"
    with pytest.raises(SystemExit):
        cli.main(["search", folder])
    assert "give a text" in capsys.readouterr().err


def test_another_model_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = small_checkpoints.save(tmp_path, 1, model=DualEncoder(MODEL), model_json=MODEL)
    with pytest.raises(UserError, match="is another model"):
        Index.open(made[0], model=clipx.load(other))


def test_an_incomplete_or_damaged_folder_is_refused(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Index.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(made[0], copy)
    (copy / "img_emb/img_emb_1.npy").write_bytes(b"half")
    with pytest.raises(UserError, match=r"img_emb_1\.npy cannot be read"):
        Index.open(copy)
    shutil.copy(made[0] / "img_emb/img_emb_0.npy", copy / "img_emb/img_emb_1.npy")
    with pytest.raises(
        UserError, match=r"img_emb_1\.npy has 25 embeddings and .*metadata_1\.parquet 15 rows"
    ):
        Index.open(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"num_embedded": None}))
    with pytest.raises(UserError, match="is not complete"):
        Index.open(copy)
