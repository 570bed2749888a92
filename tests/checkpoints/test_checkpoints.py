"""A checkpoint is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_checkpoints import MODEL, save, trained
from torch import nn

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest as manifest_module
from clipx.checkpoints.format import Training, TrainState
from clipx.checkpoints.saver import Saver
from clipx.data.preprocessing import Preprocessing
from clipx.distributed.runtime import Runtime
from clipx.files import digest_file
from clipx.models.dual_encoder import DualEncoder
from clipx.types import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    path = save(tmp_path / "c", 500, model=model)
    assert path == tmp_path / "c/step_00000500"
    assert names(path) == sorted(
        [
            *("model.safetensors", "optimizer"),
            *("open_clip_config.json", "training.pt", "state.json", "manifest.json"),
        ]
    )
    saved = checkpoints.load(path)
    assert saved.state == TrainState(500, 4000, 2**63 - 500, "ab")
    assert all(torch.equal(saved.weights[k], v) for k, v in model.state_dict().items())
    assert torch.equal(saved.training.random[0]["torch"], torch.get_rng_state())
    again = torch.optim.AdamW(model.parameters())
    again.load_state_dict(saved.training.optimizer)
    assert again.state[model.weight]["step"] == 1
    assert again.state[model.weight]["exp_avg"].abs().sum() > 0
    assert checkpoints.verify(path) is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 200, 1000, 100_000_000):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_00001000", "step_100000000"]
    save(tmp_path, 100_000_001, keep=1)
    assert names(tmp_path) == ["step_100000001"]


def test_those_of_multiples_are_kept_for_good(tmp_path: Path) -> None:
    for step in range(1, 11):
        save(tmp_path, step, keep=2, about={"keep_every": 4})
    assert names(tmp_path) == [f"step_{step:08d}" for step in (4, 8, 9, 10)]


def test_a_checkpoint_has_the_texts_of_its_run(tmp_path: Path) -> None:
    path = save(tmp_path, 1, about={"texts": {"config.yaml": "a: é\n"}})
    assert (path / "config.yaml").read_text(encoding="utf-8") == "a: é\n"
    (path / "config.yaml").write_text("a: b\n")
    assert "config.yaml" in (checkpoints.verify(path) or "")


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow past `limit` bytes; Python ignores the signal, so writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit", "width", "note"),
    [(1000, 30, ""), (1000, 3, ""), (50_000, 3, "x" * 100_000)],
    ids=["model.safetensors", "training.pt", "open_clip_config.json"],  # what the limit cuts
)
def test_a_full_disk_is_an_oserror_and_leaves_the_old_checkpoint(
    tmp_path: Path, limit: int, width: int, note: str
) -> None:
    """safetensors and torch have errors of their own for it."""
    other: dict[str, Any] = {"model": nn.Linear(width, 20), "model_json": MODEL | {"note": note}}
    old = save(tmp_path, 1, **other)
    with full_disk(limit), pytest.raises(OSError, match=r"Error|File too large"):
        save(tmp_path, 2, **other)
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoints.newest_valid(tmp_path) == (old, [])
    save(tmp_path, 2, **other)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_fault_of_ours_midway_leaves_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(tmp_path, 2, model_json=MODEL | {"embed_dim": object()})
    assert names(tmp_path) == ["step_00000001"]


def save_and_die(folder: Path) -> None:
    """The manifest is the last thing written; its first hash is the process's end."""
    checkpoints.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    save(folder, 2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_a_kill_midway_leaves_the_old_one_and_the_next_save_cleans_up(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2  # the half-written one, under a name that is no checkpoint's
    assert checkpoints.list_checkpoints(tmp_path) == [old]
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("model.safetensors", cut, r"model.safetensors has \d+ bytes instead of \d+"),
        ("model.safetensors", flip, "model.safetensors has another SHA-256"),
        ("training.pt", flip, "training.pt has another SHA-256"),
        ("state.json", Path.unlink, "FileNotFoundError: .*state.json"),
        ("manifest.json", Path.unlink, "FileNotFoundError: .*manifest.json"),
        ("manifest.json", cut, "JSONDecodeError"),
        ("manifest.json", lambda path: path.write_text("[1]"), "its manifest does not list"),
        (
            "manifest.json",
            lambda path: path.write_text("{}"),
            "its manifest does not list model.sa",
        ),
        ("manifest.json", lambda path: path.write_text("[" * 100_000), "RecursionError"),
        (
            "optimizer/rank_00007.safetensors",
            Path.touch,
            r"rank_00007.* is not listed in its manif",
        ),
        ("ema.safetensors", Path.touch, r"ema.safetensors is not listed in its manifest"),
        ("config.json", Path.touch, r"config.json is not listed in its manifest"),
        (".", shutil.rmtree, "FileNotFoundError"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(
    tmp_path: Path, file: str, damage: Any, reason: str
) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad / file)
    bad.mkdir(exist_ok=True)
    found, complaints = checkpoints.newest_valid(tmp_path)
    assert found == good
    assert len(complaints) == 1
    assert re.search(f"step_00000002 is skipped: .*{reason}", complaints[0])
    assert save(tmp_path, 2) == bad  # training comes here again, and writes it anew
    assert checkpoints.newest_valid(tmp_path) == (bad, [])


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname"])
def test_a_manifest_lists_nothing_outside_of_its_checkpoint(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "c", 1)
    (tmp_path / "outside").touch()
    listed = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(listed | {name: {"bytes": 0, "sha256": ""}}))
    assert "which is outside of the checkpoint" in (checkpoints.verify(path) or "")
    manifest_module.remove(path)
    assert (tmp_path / "outside").exists()


# --- what else is in checkpoints/ ---


def strangers(folder: Path) -> list[Path]:
    """A person's own entries, which sort behind the checkpoints of a run."""
    folder.mkdir(exist_ok=True)
    backup = shutil.copytree(save(folder.parent / "other", 4), folder / "step_best")
    shutil.copytree(backup, folder / "step_00000004.bak")
    shutil.copytree(backup, folder / "step_99999999")  # whose state.json is of step 4
    shutil.copytree(backup, folder / ".step_mine")
    (folder / "step_latest").symlink_to(backup)
    (folder / "step_00000002").symlink_to(backup)
    (folder / "step_00000001").mkdir()
    (folder / "step_00000001/notes.txt").write_text("mine")
    (folder / "step_00000003").touch()
    (folder / "step_²").mkdir()
    return sorted(folder.iterdir())


def test_entries_of_others_are_neither_resumed_from_nor_removed(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    theirs = strangers(folder)
    for step in (8, 9, 10, 11):
        own = save(folder, step, keep=2)
        assert checkpoints.newest_valid(folder)[0] == own
    kept = [folder / f"step_{step:08d}" for step in (10, 11)]
    assert sorted(folder.iterdir()) == sorted([*theirs, *kept])
    assert (folder / "step_00000001/notes.txt").read_text() == "mine"
    assert checkpoints.verify(folder / "step_best") is None, "no file of it was touched"


def test_what_was_passed_over_does_not_take_the_place_of_what_is_written(tmp_path: Path) -> None:
    """Three damaged ones are newer than the save: it and the good one before it stay."""
    good = save(tmp_path, 40)
    for step in (50, 60, 70):
        cut(save(tmp_path, step, keep=9) / "training.pt")
    assert checkpoints.newest_valid(tmp_path)[0] == good
    new = save(tmp_path, 45, keep=2)
    assert good.exists()
    assert checkpoints.newest_valid(tmp_path)[0] == new


def test_a_file_that_a_person_has_put_into_a_checkpoint_stays(tmp_path: Path) -> None:
    old = save(tmp_path, 1)
    (old / "notes.txt").write_text("mine")
    save(tmp_path, 2, keep=1)
    assert names(old) == ["notes.txt"]
    with pytest.raises(FileExistsError, match="step_00000001 is not a checkpoint of a run; mo"):
        save(tmp_path, 1, keep=1)
    assert names(tmp_path) == ["step_00000001", "step_00000002"], "no half-written one is left"
    assert names(old) == ["notes.txt"]


@pytest.mark.parametrize("kind", ["copy", "weights", "link"])
def test_a_save_takes_the_place_of_nothing_that_a_person_has_put_there(
    tmp_path: Path, kind: str
) -> None:
    other, place = save(tmp_path / "other", 4), tmp_path / "c/step_00000008"
    place.parent.mkdir()
    if kind == "copy":  # of step 4, under the name of another
        shutil.copytree(other, place)
    elif kind == "weights":
        place.mkdir()
        shutil.copy(other / "model.safetensors", place)
    else:
        place.symlink_to(other)
    before = sorted(path.name for path in place.rglob("*"))
    with pytest.raises(FileExistsError, match="move it away"):
        save(tmp_path / "c", 8)
    assert sorted(path.name for path in place.rglob("*")) == before
    assert names(tmp_path / "c") == ["step_00000008"]


def test_the_order_is_that_of_the_steps(tmp_path: Path) -> None:
    for name in ("step_9", "step_100000000", "step_00000200"):
        (tmp_path / name).mkdir()
    found = [path.name for path in checkpoints.list_checkpoints(tmp_path)]
    assert found == ["step_9", "step_00000200", "step_100000000"]


def test_an_old_checkpoint_that_cannot_be_removed_is_no_fault_of_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are removed, and the run is told."""
    for step in (1, 2):
        save(tmp_path, step, keep=9)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if "step_00000001" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    saver = Saver(
        Runtime(SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=1)),
        SimpleNamespace(  # type: ignore[arg-type]
            is_sharded=False,
            collect=lambda copy: (nn.Linear(3, 2).state_dict(), Training({}, [])),
        ),
        tmp_path,
        checkpoints.About(MODEL, keep=1),
        newest=None,
        every_seconds=None,
        asynchronous=False,
    )
    assert saver.save(TrainState(step=3), wait=True) is None
    assert saver.newest == 3
    assert ["an old checkpoint cannot be removed" in text for text in saver.take_notices()] == [
        True
    ]
    assert saver.take_notices() == []
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_where_no_checkpoint_is_valid_none_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "absent") == (None, [])
    for step in (1, 2):
        cut(save(tmp_path, step) / "training.pt")
    found, complaints = checkpoints.newest_valid(tmp_path)
    assert found is None
    assert ["step_00000002" in complaints[0], "step_00000001" in complaints[1]] == [True, True]


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    path, target = save(tmp_path, 1), tmp_path / "executed"
    parts = {"optimizer": Payload(target), "random": [], "scaler": {}, "objective": {}}
    torch.save(parts, path / "training.pt")
    with pytest.raises(UserError, match=r"training\.pt is broken, or holds more than tensors"):
        checkpoints.load(path)
    assert not target.exists()
    torch.load(path / "training.pt", weights_only=False)  # the payload works
    assert target.exists()


def test_scaler_objective_and_averages_come_back(tmp_path: Path) -> None:
    parts: dict[str, Any] = {
        "scaler": {"factor": 64.0, "good": 3},
        "objective": {"queue._extra_state": {"image": torch.randn(4, 2)}},
        "ema": {"weight": torch.randn(2, 3), "num_updates": torch.tensor(7)},
    }
    model = nn.Linear(3, 2)
    training = Training(trained(model).state_dict(), [], **parts)
    about = checkpoints.About(MODEL)
    path = checkpoints.save(tmp_path, TrainState(step=1), model.state_dict(), training, about)
    found = checkpoints.load(path).training
    assert found.scaler == parts["scaler"]
    stored, queue = (x["queue._extra_state"] for x in (found.objective, parts["objective"]))
    assert torch.equal(stored["image"], queue["image"])
    assert found.ema is not None
    assert all(torch.equal(found.ema[name], t) for name, t in parts["ema"].items())


# --- load_model ---


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints of a model."""
    torch.manual_seed(0)
    for step in (1, 2):
        save(tmp_path / "run/checkpoints", step, model=DualEncoder(MODEL), model_json=MODEL)
    return tmp_path / "run"


def test_a_model_is_loaded_from_a_run_or_a_checkpoint(run: Path) -> None:
    newest = run / "checkpoints/step_00000002"
    for path in (run, newest, str(run)):
        model, model_json, state = checkpoints.load_model(path)
        assert state.step == 2
        assert model_json | MODEL == model_json
        assert not model.training
        weights = checkpoints.load(newest).weights
        assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert checkpoints.load_model(run / "checkpoints/step_00000001")[2].step == 1
    cut(newest / "training.pt")
    assert checkpoints.load_model(run)[2].step == 1


def test_the_averages_are_loaded_where_there_are_any_unless_the_weights_are_asked_for(
    tmp_path: Path,
) -> None:
    model = DualEncoder(MODEL)
    averages = {name: torch.full_like(t, 0.25) for name, t in model.state_dict().items()}
    path = save(tmp_path, 1, model=model, model_json=MODEL, ema=averages)
    found = checkpoints.load_model(path)[0].state_dict()
    assert all(bool((t == 0.25).all()) for t in found.values())
    raw = checkpoints.load_model(path, averaged=False)[0].state_dict()
    assert all(torch.equal(raw[name], t) for name, t in model.state_dict().items())


def test_what_cannot_be_loaded_is_named(run: Path, tmp_path: Path) -> None:
    newest = run / "checkpoints/step_00000002"
    with pytest.raises(UserError, match=r"nowhere is no folder; give a run folder, or one of its"):
        checkpoints.load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no usable checkpoint"):
        checkpoints.load_model(tmp_path)
    flip(newest / "training.pt")
    with pytest.raises(UserError, match=r"step_00000002 is damaged: training\.pt has another SHA"):
        checkpoints.load_model(newest)
    cut(run / "checkpoints/step_00000001/model.safetensors")
    with pytest.raises(UserError, match=r"(?s)no usable checkpoint.*0002 is skipped.*0001 is skip"):
        checkpoints.load_model(run)


PIXELS = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (
            "open_clip_config.json",
            {"model_cfg": MODEL | {"embed_dim": 16}, **PIXELS},
        ),  # other shapes
        ("open_clip_config.json", {}),
        ("state.json", {"step": 2, "written by": "a newer clipx"}),
    ],
)
def test_a_checkpoint_that_does_not_fit_this_code_is_named(
    run: Path, file: str, content: dict[str, Any]
) -> None:
    path = run / "checkpoints/step_00000002"
    (path / file).write_text(json.dumps(content))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[file] = {
        "bytes": (path / file).stat().st_size,
        "sha256": digest_file(path / file),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="step_00000002 cannot be read: "):
        checkpoints.load_model(path)


def test_a_checkpoint_keeps_the_preprocessing(tmp_path: Path) -> None:
    """Otherwise the same weights get one number in training and another by `clipx eval`."""
    cfg = {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "resize_mode": "squash",
        "interpolation": "bilinear",
    }
    model_json = MODEL | {"preprocess_cfg": cfg}
    path = save(tmp_path / "c", 1, model=DualEncoder(MODEL), model_json=model_json)
    found = Preprocessing.of(checkpoints.load_model(path)[1])
    assert found == Preprocessing.of(model_json)
    assert (found.resize_mode, found.interpolation) == ("squash", "bilinear")
