"""Where a checkpoint has a file that is broken though its manifest is right, the one before it is
taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stepping import CPU, MODEL, learner, model

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest
from clipx.checkpoints.format import About, Training, TrainState
from clipx.distributed.runtime import Runtime
from clipx.training import resume
from clipx.training.learner import Learner
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.types import UserError

ALONE = Runtime(SimpleNamespace(device=CPU, process_index=0, num_processes=1))
CORPUS: Any = SimpleNamespace(digest="ab", layout_digest="other")


@pytest.fixture
def trained() -> Learner:
    encoder = model()
    return learner(encoder, build_optimizer(encoder, OptimConfig()))


@pytest.fixture
def folder(trained: Learner, tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    optimizer = trained.optimizer
    sum(p.sum() for p in trained.encoder.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    for step in (1, 2):
        random = [{"torch": torch.get_rng_state(), "cuda": None}]
        training = Training(optimizer.state_dict(), random)
        state = TrainState(step=step, position=8 * step, corpus_digest="ab")
        weights = trained.encoder.state_dict()
        checkpoints.save(tmp_path / "checkpoints", state, weights, training, About(MODEL))
    return tmp_path


def reseal(path: Path) -> None:
    (path / "manifest.json").unlink()
    manifest.seal(path, {})
    assert manifest.verify(path) is None


def newest(folder: Path, trained: Learner) -> tuple[int | None, list[str]]:
    run: Any = SimpleNamespace(path=folder, checkpoints=folder / "checkpoints")
    saved, messages = resume.load_newest(ALONE, run, CORPUS, trained, accept_changed_corpus=False)
    return saved and saved.state.step, messages


def change_training(path: Path, **changes: Any) -> None:
    parts = torch.load(path / "training.pt", weights_only=True)
    torch.save(parts | changes, path / "training.pt")


def change_state(path: Path, **changes: Any) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | changes))


BROKEN = {
    "no tensors": lambda path: (path / "training.pt").write_bytes(b""),
    "no zip": lambda path: (path / "training.pt").write_bytes(b"PK\x03\x04" + b"x" * 99),
    "no optimizer": lambda path: change_training(path, optimizer=None),
    "no groups": lambda path: change_training(path, optimizer={"state": {}, "param_groups": [{}]}),
    "random": lambda path: change_training(path, random=[{"torch": torch.zeros(3), "cuda": None}]),
    "weights": lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 64),
    "moments": lambda path: (path / "optimizer/rank_00000.safetensors").write_bytes(b"\0" * 9),
    "position": lambda path: change_state(path, position="many"),
    "negative": lambda path: change_state(path, position=-8),
    "no position": lambda path: (path / "state.json").write_text('{"step": 2}'),
    "nested": lambda path: (path / "state.json").write_text('{"step": 2, "x":' + "[" * 99_999),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
def test_the_checkpoint_before_a_broken_one_is_taken(
    damage: Any, folder: Path, trained: Learner
) -> None:
    assert newest(folder, trained)[0] == 2
    broken = folder / "checkpoints/step_00000002"
    damage(broken)
    reseal(broken)
    step, messages = newest(folder, trained)
    assert step == 1
    assert "step_00000002" in messages[0]
    assert "skipped" in messages[0]
    assert messages[-1] == f"resumed from {folder / 'checkpoints/step_00000001'} at step 1"


def test_where_all_are_unreadable_nothing_starts_from_the_beginning(
    folder: Path, trained: Learner
) -> None:
    for path in (folder / "checkpoints").iterdir():
        (path / "training.pt").write_bytes(b"")
        reseal(path)
    with pytest.raises(UserError, match="no checkpoint is left; move them away to start again"):
        newest(folder, trained)


def test_a_checkpoint_of_another_model_is_not_taken_up(folder: Path, trained: Learner) -> None:
    other = model(MODEL | {"embed_dim": 8})
    path = folder / "checkpoints/step_00000002"
    state, training = TrainState(step=2, corpus_digest="ab"), checkpoints.load(path).training
    shutil.rmtree(path)
    checkpoints.save(path.parent, state, other.state_dict(), training, About(MODEL))
    step, messages = newest(folder, trained)
    assert step == 1
    assert "has shape" in messages[0]


@pytest.mark.parametrize("change", [change_state, change_training])
def test_what_a_later_version_has_written_is_not_passed_over(
    change: Any, folder: Path, trained: Learner
) -> None:
    """To train on from an earlier checkpoint would throw away what is whole."""
    path = folder / "checkpoints/step_00000002"
    change(path, curriculum={"stage": 3})
    reseal(path)
    with pytest.raises(UserError, match=r"has curriculum, which this version of clipx does not kn"):
        newest(folder, trained)
