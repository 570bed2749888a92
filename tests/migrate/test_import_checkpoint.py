"""A checkpoint of open_clip_train becomes one of clipx, and the next steps are the peer's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_runs import BATCH, STEPS, PeerRun, batch, named, write_model, write_params
from torch.nn import functional as F

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.sharded import load_optimizer
from clipx.config import load
from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, sigmoid
from clipx.migrate.run import import_run
from clipx.models.dual_encoder import DualEncoder
from clipx.models.weights import name_in_clipx
from clipx.training.config import TrainConfig
from clipx.training.optim import build_optimizer
from clipx.types import UserError


def imported(folder: Path, checkpoint: Path, **params: Any) -> tuple[Path, list[str]]:
    """(the new run folder, what was printed)"""
    lines = import_run(write_params(folder, **params), checkpoint, folder / "run")
    return folder / "run", lines


def opened(run: Path) -> tuple[DualEncoder, torch.optim.Optimizer, checkpoints.LoadedCheckpoint]:
    """The model and the optimizer of the newest checkpoint, as `clipx train` builds them."""
    config = load(TrainConfig, run / "train.yaml")
    newest, complaints = checkpoints.newest_valid(run / "checkpoints")
    assert newest is not None, complaints
    saved = checkpoints.load(newest)
    model, _, _ = checkpoints.load_model(newest)
    model.train()
    model.lock(config.model.locked, config.model.unlocked_groups)
    optimizer = build_optimizer(model, config.optim)
    load_optimizer(optimizer, saved.training.optimizer)
    return model, optimizer, saved


def step(model: DualEncoder, optimizer: torch.optim.Optimizer, number: int) -> float:
    image, text = model(*batch(number))
    settings = {"logit_scale": model.logit_scale, "logit_bias": model.logit_bias}
    loss = (sigmoid if model.logit_bias is not None else infonce).Config().build()
    out = loss(image, text, pool=LocalPool(), **settings).loss
    optimizer.zero_grad()
    out.backward()
    optimizer.step()
    return out.item()


@pytest.mark.parametrize(
    ("changes", "prefix", "locked"),
    [
        ({}, "", None),
        ({"custom_text": True}, "module._orig_mod.", None),
        ({"custom_text": True}, "_orig_mod.module.", (2, 1)),
        ({}, "", (1, 2)),
        ({"init_logit_scale": 2.3, "init_logit_bias": -10.0}, "module.", None),
        # Its convolutions are channels-last here, and contiguous in the file.
        ({"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}}, "", None),
    ],
)
def test_the_next_steps_are_those_of_the_peer(
    tmp_path: Path, changes: dict[str, Any], prefix: str, locked: tuple[int, int] | None
) -> None:
    name = write_model(tmp_path / "model", **changes)
    peer = PeerRun(name, locked=locked)
    checkpoint = peer.save(tmp_path / "epoch_1.pt", prefix=prefix)
    # Without weight decay, since clipx does not decay embeddings.
    params = {"model": name, "wd": 0.0, "siglip": "init_logit_bias" in changes}
    if locked is not None:
        params |= {"lock_image": True, "lock_image_unlocked_groups": locked[0]}
        params |= {"lock_text": True, "lock_text_unlocked_layers": locked[1]}
    run, lines = imported(tmp_path, checkpoint, **params)
    for group in peer.optimizer.param_groups:
        group["weight_decay"] = 0.0
    model, optimizer, saved = opened(run)
    assert saved.state.step == STEPS
    assert saved.state.position == STEPS * BATCH
    assert any(f"moments of {len(peer.optimizer.state)} parameters" in line for line in lines)

    before = named(model)
    for number in (10, 11, 12):
        assert step(model, optimizer, number) == pytest.approx(peer.step(*batch(number)), abs=1e-5)
    trained = 0
    for peer_name, parameter in peer.model.named_parameters():
        clipx_name = name_in_clipx(peer_name)
        own = model.get_parameter(clipx_name)
        # Three steps move a weight by 3e-3. Biases of keys have no gradient but rounding.
        torch.testing.assert_close(own, parameter, rtol=0, atol=1e-4)
        trained += bool((own != before[clipx_name]).any())
    assert trained == len(peer.optimizer.state)


def test_without_the_moments_the_second_step_would_be_another(tmp_path: Path) -> None:
    """The oracle of the test above can tell."""
    name = write_model(tmp_path / "model")
    peer = PeerRun(name)
    run, _ = imported(tmp_path, peer.save(tmp_path / "epoch_1.pt"), model=name)
    model, optimizer, _ = opened(run)
    fresh = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    step(model, fresh, 10)
    peer.step(*batch(10))
    assert abs(step(model, fresh, 11) - peer.step(*batch(11))) > 1e-3
    assert len(optimizer.state) == len(peer.optimizer.state)


def test_what_is_not_carried_over_and_what_differs_is_printed(
    trained: tuple[str, PeerRun], tmp_path: Path
) -> None:
    name, peer = trained
    checkpoint = peer.save(tmp_path / "epoch_1.pt")
    run, lines = imported(tmp_path, checkpoint, model=name)
    text = "\n".join(lines)
    assert "not carried over: the order of the data" in text
    assert "state of the random generators" in text
    assert "open_clip also decayed text.positional_embedding" in text
    assert "text.token_embedding.weight" in text
    assert lines[-1] == f"go on with: clipx train {run / 'train.yaml'}"


def test_steps_with_an_overflow_count_for_the_schedule(
    trained: tuple[str, PeerRun], tmp_path: Path
) -> None:
    """3 updates of 4 steps an epoch: one step overflowed. The loss scale comes along."""
    name, peer = trained
    scaler = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5}
    scaler |= {"growth_interval": 2000, "_growth_tracker": 7}
    checkpoint = peer.save(tmp_path / "epoch_1.pt", scaler=scaler)
    samples = 4 * BATCH
    run, _ = imported(
        tmp_path, checkpoint, model=name, precision="amp", train_num_samples=samples, workers=2
    )
    _, _, saved = opened(run)
    assert saved.state.step == 4
    assert saved.training.scaler == {"factor": 1024.0, "good": 7}
    config = load(TrainConfig, run / "train.yaml")
    assert config.duration == "16 steps"
    assert config.precision == "fp16"


def test_a_finished_run_says_how_to_train_for_longer(
    trained: tuple[str, PeerRun], tmp_path: Path
) -> None:
    name, peer = trained
    checkpoint = peer.save(tmp_path / "epoch_4.pt", epoch=4)
    _, lines = imported(tmp_path, checkpoint, model=name)
    assert any("all 4 epochs are done" in line and "raise duration" in line for line in lines)


def test_the_state_of_another_optimizer_is_left_behind_with_a_message(tmp_path: Path) -> None:
    name = write_model(tmp_path / "model")
    peer = PeerRun(name)
    peer.optimizer = torch.optim.SGD(peer.model.parameters(), lr=0.1, momentum=0.9)
    peer.step(*batch(0))
    checkpoint = peer.save(tmp_path / "epoch_1.pt")
    run, lines = imported(tmp_path, checkpoint, model=name, train_num_samples=5 * BATCH, workers=1)
    assert any("state of the optimizer, which starts anew" in line for line in lines)
    _, optimizer, saved = opened(run)
    assert saved.state.step == 5
    assert not optimizer.state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PeerRun]:
    """The name of a model and a run of it. To be copied, not changed."""
    name = write_model(tmp_path_factory.mktemp("trained") / "model")
    return name, PeerRun(name)


def damaged(kind: str, peer: PeerRun) -> dict[str, Any]:
    """Changes of the checkpoint's content."""
    weights = dict(peer.model.state_dict())
    optimizer = copy.deepcopy(peer.optimizer.state_dict())
    if kind == "weights alone":
        return {"drop": ("epoch", "optimizer")}
    if kind == "another epoch":
        return {"epoch": "two"}
    if kind == "a weight is missing":
        del weights["visual.conv1.weight"]
    elif kind == "not finite":
        weights["visual.conv1.weight"] = torch.full_like(weights["visual.conv1.weight"], torch.nan)
    elif kind == "another model":
        weights["visual.conv1.weight"] = torch.zeros(8, 3, 4, 4)
    elif kind == "another run":
        optimizer["param_groups"][0]["params"] = optimizer["param_groups"][0]["params"][:-1]
    elif kind == "a moment of another shape":
        optimizer["state"][0]["exp_avg"] = torch.zeros(3, 3)
    elif kind == "no groups":
        del optimizer["param_groups"]
    return {"state_dict": weights, "optimizer": optimizer}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("weights alone", r"has no epoch, optimizer.*model\.initial"),
        ("another epoch", "epoch is 'two'"),
        ("a weight is missing", r"visual\.conv1\.weight: not in the file"),
        ("another model", r"visual\.conv1\.weight: \(8, 3, 4, 4\) in the file"),
        ("not finite", "weights are not finite, first visual.conv1.weight"),
        ("another run", "Give the params.txt of the same run"),
        ("a moment of another shape", r"exp_avg of .* has shape \[3, 3\]"),
        ("no groups", "optimizer has no param_groups"),
    ],
)
def test_odd_checkpoints_are_refused_before_anything_is_written(
    trained: tuple[str, PeerRun], tmp_path: Path, kind: str, message: str
) -> None:
    name, peer = trained
    changes = damaged(kind, peer)
    dropped = changes.pop("drop", ())
    file = peer.save(tmp_path / "epoch_1.pt", **changes)
    content = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in content.items() if key not in dropped}, file)
    with pytest.raises(UserError, match=message):
        imported(tmp_path, file, model=name)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    name = write_model(tmp_path / "model")
    file = tmp_path / "epoch_1.pt"
    with pytest.raises(UserError, match=r"epoch_1\.pt does not exist"):
        imported(tmp_path, file, model=name)
    file.write_text("no archive")
    with pytest.raises(UserError, match="cannot be read as a checkpoint of open_clip_train"):
        imported(tmp_path, file, model=name)
    torch.save({"epoch": 1, "code": F.relu, "state_dict": {}, "optimizer": {}}, file)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        imported(tmp_path, file, model=name)
