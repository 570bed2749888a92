"""Sections that need a model and its test sets, on a tiny trained run."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import chromium
import pytest
from html_checks import Checker, checked
from tiny_runs import (
    COLORS,
    picture,
    png,
    train,
    write_config,
    write_corpus,
    write_tar,
    write_test_set,
)

from clipx import cli
from clipx.report import maps
from clipx.report.maps import Projection

EVIL = '<script>alert("1")</script> & <b>'


def write_captioned(folder: Path) -> Path:
    """Twelve images with two captions each, which contain tags."""
    members: dict[str, bytes] = {}
    for index in range(12):
        color = list(COLORS)[index % 4]
        members[f"r{index:02d}.png"] = png(picture(color, "bar", 2000 + index))
        members[f"r{index:02d}.txt"] = f"{EVIL} {index} {color}\nsecond {index}".encode()
    write_tar(folder / "test" / "0.tar", members)
    return folder


@pytest.fixture(scope="module", autouse=True)
def layout() -> Iterator[None]:
    """Stands for UMAP, which numba compiles for 8 s; test_maps.py has the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "umap", lambda features: Projection("UMAP", features[:, :2]))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported")
    classes = write_test_set(folder / "colors")
    captions = write_captioned(folder / "captions")
    names = (classes / "classnames.txt").read_text().replace("red", EVIL)
    (classes / "classnames.txt").write_text(names)
    evaluators = {
        "colors": {"name": "zero_shot", "path": str(classes), "every": "10 steps"},
        "colors-again": {"name": "zero_shot", "path": str(classes)},
        "gone": {"name": "zero_shot", "path": str(folder / "gone")},
        "captions": {"name": "retrieval", "path": str(captions)},
        "health": {"name": "embedding_health", "path": str(captions), "every": "10 steps"},
    }
    shutil.copytree(classes, folder / "gone")
    corpus = write_corpus(folder / "train")
    train(write_config(folder, corpus, evaluators=evaluators, duration="20 steps"))
    shutil.rmtree(folder / "gone")
    return folder / "run"


def report(*arguments: str | Path) -> str:
    """What `clipx report` prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        cli.main(["report", *map(str, arguments)])
    return printed.getvalue().strip()


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    assert report(run) == str(run / "report.html")
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Checker:
    return checked(html)


def test_captions_and_class_names_are_text(html: str, page: Checker) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert any(t.startswith(f"“{EVIL} ") for t in page.texts)
    assert EVIL in page.texts


def test_each_set_of_classes_has_its_part_and_a_missing_one_an_error(page: Checker) -> None:
    assert {"colors", "colors-again"} <= set(page.texts)
    assert re.search(r"gone: test set file .*gone/.* cannot be read", page.text)


def test_the_accuracy_at_the_checkpoint_is_that_of_the_last_evaluation(
    run: Path, page: Checker
) -> None:
    from clipx.report.collect import read_record, scores_by_set

    value = scores_by_set(read_record(run).results)["colors"]["zeroshot-top1"][-1].value
    summary = (
        f"{round(12 * value)} of 12 images are put into the right one of 4 classes: {value:.1%}, "
        "by chance 25.0%."
    )
    assert page.texts.count(summary) == 2


def test_pictures_are_inside_the_page(html: str) -> None:
    images = re.findall(r'<img src="([^"]{0,30})', html)
    assert len(images) > 30
    assert {i[:23] for i in images} == {"data:image/webp;base64,"}


def test_the_space_is_mapped_and_measured(page: Checker) -> None:
    assert {"PCA", "t-SNE", "UMAP", "Similarity of some pairs", "Effective rank"} <= set(page.texts)
    assert any(t.startswith("12 pairs of captions, each modality") for t in page.texts)


def test_health_over_time_has_the_two_evaluations(page: Checker) -> None:
    assert re.search(r"step 10\nalignment: [\d.]+ \([\d.]+ to [\d.]+\)", page.text)
    assert re.search(r"step 20\nimage: -[\d.]+\ntext: ", page.text)


def test_out_names_the_file(run: Path, tmp_path: Path) -> None:
    report(run, "--out", tmp_path / "deep" / "x.html")
    checked((tmp_path / "deep" / "x.html").read_text(encoding="utf-8"))


def test_a_broken_checkpoint_leaves_the_curves(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    for weights in copy.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(b"x")
    report(copy)
    text = checked((copy / "report.html").read_text(encoding="utf-8")).text
    assert "holds no usable checkpoint" in text
    assert "newest loss" in text


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 420])
def test_a_browser_makes_no_request_and_its_console_is_empty(
    run: Path, html: str, width: int
) -> None:
    browser = chromium.Chromium()
    try:
        browser.open(run / "report.html", width=width, dark=False)
        overflow = browser.value("document.documentElement.scrollWidth - innerWidth")
        urls = [e["params"]["request"]["url"] for e in browser.events if "request" in e["params"]]
        messages = [e for e in browser.events if "request" not in e["params"]]
        assert [u for u in urls if not u.startswith("data:")] == [
            (run / "report.html").resolve().as_uri()
        ]
        assert messages == []
        assert overflow <= 0
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        browser.value("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        assert browser.value(broken) == 0
    finally:
        browser.close()
