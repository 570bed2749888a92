"""A checkpoint of open_clip_train as one of clipx: weights, moments, step, loss scale.

open_clip's optimizer numbers its parameters: first those without weight decay, then the others,
each in the model's order. A checkpoint stores no names, so the numbers are computed again here from
the names of the weights, which are in that order too, and every size is compared.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipx.models.weights import COMPUTED, mismatches, name_in_clipx
from clipx.types import UserError

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""The state of AdamW for each parameter, by the same names in both programs."""


@dataclass(frozen=True)
class PeerCheckpoint:
    """epoch: number of epochs completed; weights: by the peer's names, without those of wrappers;
    optimizer: its state_dict; scaler: of float16, empty without; path: for errors
    """

    path: Path
    epoch: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]

    @property
    def num_updates(self) -> int:
        """Steps that the optimizer has taken; 0 where its state has no counts."""
        counts = [int(items["step"]) for items in self.states.values() if "step" in items]
        return max(counts, default=0)

    @property
    def states(self) -> dict[int, dict[str, Any]]:
        return self.optimizer["state"]


def read_checkpoint(path: Path) -> PeerCheckpoint:
    """Read epoch_N.pt without running code from it. Raises UserError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"--checkpoint {path} does not exist (looked from {Path.cwd()})") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        line = str(error).split("\n")[0][:200]
        raise UserError(
            f"--checkpoint {path} cannot be read as a checkpoint of open_clip_train: "
            f"{type(error).__name__}: {line}"
        ) from error
    missing = ["epoch", "state_dict", "optimizer"]
    if isinstance(content, dict):
        missing = [name for name in missing if name not in content]
    if missing:
        raise UserError(
            f"--checkpoint {path} has no {', '.join(missing)}: it is not an epoch_N.pt that "
            "open_clip_train writes. From weights alone a run begins with "
            "model.initial={name: checkpoint, path: FILE}"
        )
    faults = _faults(content)
    if faults:
        raise UserError(f"--checkpoint {path} is damaged: {'; '.join(faults)}")
    weights = {}
    for name, tensor in content["state_dict"].items():
        # torch.compile puts `_orig_mod.` before the names in each module that it has compiled, and
        # DDP `module.` before all.
        weights[name.replace("_orig_mod.", "").removeprefix("module.")] = tensor
    scaler = content.get("scaler") or {}
    return PeerCheckpoint(path, content["epoch"], weights, content["optimizer"], scaler)


def _faults(content: Mapping[str, Any]) -> list[str]:
    faults = []
    epoch = content["epoch"]
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        faults.append(f"epoch is {epoch!r}")
    weights = content["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        faults.append("state_dict is not a dictionary of tensors")
    optimizer = content["optimizer"]
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("state"), dict):
        faults.append("optimizer has no state")
    else:
        groups = optimizer.get("param_groups")
        if not isinstance(groups, list) or not all(
            isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
        ):
            faults.append("optimizer has no param_groups")
        if not all(isinstance(items, dict) for items in optimizer["state"].values()):
            faults.append("optimizer has a state that is not a dictionary")
    return faults


def weights_of(peer: PeerCheckpoint, model: nn.Module) -> dict[str, Tensor]:
    """The weights by the model's names, float32. Raises UserError where they do not fit."""
    expected = model.state_dict()
    weights = {}
    for peer_name, tensor in peer.weights.items():
        name = name_in_clipx(peer_name)
        if name in COMPUTED:
            continue
        if name in expected and tensor.numel() == 1 == expected[name].numel():
            tensor = tensor.reshape(expected[name].shape)  # a scalar, or a vector of one
        weights[name] = tensor.float() if tensor.is_floating_point() else tensor
    faults = mismatches(model, weights)
    if faults:
        raise UserError(
            f"--checkpoint {peer.path} does not fit the model of params.txt:\n" + "\n".join(faults)
        )
    not_finite = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if not_finite:
        raise UserError(
            f"--checkpoint {peer.path}: {len(not_finite)} weights are not finite, first "
            f"{not_finite[0]}; import an earlier checkpoint"
        )
    return weights


def moments_of(
    peer: PeerCheckpoint, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """The state_dict of `optimizer`, which has the trained parameters of `model`, with the peer's
    moments. Raises UserError where they do not fit."""
    state = optimizer.state_dict()
    number_of: dict[int, int] = {}
    for group, stored in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, number in zip(group["params"], stored["params"], strict=True):
            number_of[id(parameter)] = number
    parameters = dict(model.named_parameters())
    state["state"] = {}
    for peer_number, name in _peer_numbers(peer, parameters).items():
        items = peer.states.get(peer_number)
        if items is None:
            continue  # it has never had a gradient
        parameter = parameters[name]
        if set(items) != MOMENTS:
            raise UserError(
                f"--checkpoint {peer.path}: the optimizer's state of {name} is "
                f"{', '.join(sorted(map(str, items)))}, and AdamW's is {', '.join(sorted(MOMENTS))}"
            )
        moments = {"step": torch.tensor(float(items["step"]))}
        for key in ("exp_avg", "exp_avg_sq"):
            if items[key].numel() != parameter.numel() or (
                parameter.numel() > 1 and items[key].shape != parameter.shape
            ):
                raise UserError(
                    f"--checkpoint {peer.path}: {key} of {name} has shape "
                    f"{list(items[key].shape)} instead of {list(parameter.shape)}"
                )
            moments[key] = items[key].float().reshape(parameter.shape)
        state["state"][number_of[id(parameter)]] = moments
    return state


def _peer_numbers(peer: PeerCheckpoint, parameters: Mapping[str, nn.Parameter]) -> dict[int, str]:
    """Number in the peer's optimizer -> clipx's name of the parameter. Raises UserError."""
    without_decay = []
    with_decay = []
    for peer_name, tensor in peer.weights.items():
        name = name_in_clipx(peer_name)
        if name not in parameters or not parameters[name].requires_grad:
            continue  # a buffer, or a locked parameter
        (with_decay if peer_decays(peer_name, tensor) else without_decay).append(name)
    sizes = [len(group["params"]) for group in peer.optimizer["param_groups"]]
    expected = [len(without_decay), len(with_decay)]
    if sizes != expected:
        raise UserError(
            f"--checkpoint {peer.path}: its optimizer has groups of "
            f"{' and '.join(map(str, sizes))} parameters, and by the model and the locks of "
            f"params.txt they have {' and '.join(map(str, expected))}. Give the params.txt of the "
            "same run, or begin a new one from the weights: import without --checkpoint, and set "
            "model.initial={name: checkpoint, path: FILE}"
        )
    numbers = [n for group in peer.optimizer["param_groups"] for n in group["params"]]
    return dict(zip(numbers, [*without_decay, *with_decay], strict=True))


def peer_decays(name: str, tensor: Tensor) -> bool:
    """Whether open_clip_train's AdamW decays a parameter of this name."""
    is_spared = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
    return tensor.ndim >= 2 and not is_spared


def scaler_of(peer: PeerCheckpoint) -> dict[str, float]:
    """The state of clipx's loss scaler; empty where the peer had none. Raises UserError."""
    if not peer.scaler:
        return {}
    factor = peer.scaler.get("scale")
    good = peer.scaler.get("_growth_tracker", 0)
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise UserError(f"--checkpoint {peer.path} is damaged: the scaler's scale is {factor!r}")
    return {"factor": float(factor), "good": int(good)}
