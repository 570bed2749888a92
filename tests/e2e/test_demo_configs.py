"""Every run of configs/run trains, on a small corpus in the place of the demo corpus."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import COLORS, SHAPES, picture, png, run_clipx, write_tar

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.stem for path in (ROOT / "configs/run").glob("demo_*.yaml"))
NEEDS_A_DOWNLOAD = {"demo_lit"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `configs` beside a corpus of 256 pairs and test sets with two splits."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs", folder / "configs")
    members: dict[str, bytes] = {}
    for n in range(256):
        color = list(COLORS)[n % len(COLORS)]
        members[f"{n:04d}.png"] = png(picture(color, SHAPES[n % len(SHAPES)], n))
        members[f"{n:04d}.txt"] = f"{n // 2} a {color} thing".encode()
    write_tar(folder / "data/demo/train/00000.tar", members)
    for name in ("emoji-groups", "mnist", "emoji-fluent", "flags-circle", "icons-phosphor"):
        write_classes(folder / "data/demo/eval" / name)
    write_classes(folder / "data/demo/eval/icons-phosphor-common")
    captions = {f"{n:03d}.png": png(picture("red", "bar", n)) for n in range(8)}
    captions |= {f"{n:03d}.txt": f"{n} red bars".encode() for n in range(8)}
    write_tar(folder / "data/demo/eval/emoji-fluent-retrieval/test/0.tar", captions)
    (folder / "data/demo/eval/emoji-fluent-retrieval/test/nshards.txt").write_text("1\n")
    return folder


def write_classes(folder: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        members: dict[str, bytes] = {}
        for n in range(first, first + 24):
            members[f"{n:03d}.png"] = png(picture(list(COLORS)[n % 4], "bar", n))
            members[f"{n:03d}.cls"] = str(n % 4).encode()
        write_tar(folder / split / "0.tar", members)
        (folder / split / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("\n".join(COLORS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in NEEDS_A_DOWNLOAD])
def test_a_method_trains_and_is_measured(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # paths in configs are relative to it
    settings = ["duration=60 steps", "optim.warmup=5 steps", "global_batch_size=16"]
    settings += [f"run_dir={tmp_path}/run", "log_every=10 steps"]
    done = run_clipx("train", Path(f"configs/run/{name}.yaml"), *settings)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    losses = [json.loads(line)["train/loss"] for line in (run / "metrics.jsonl").open()]
    assert len(losses) == 6
    (result,) = [json.loads(line) for line in (run / "results.jsonl").open()]
    assert any(key.endswith("top1") for key in result)
