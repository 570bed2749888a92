"""What optimizer, clipping, scaler and average make of a model whose parameters FSDP2 shares out
over the ranks: handed back whole, to be compared with one process. The test file judges it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from clipx.distributed.runtime import Runtime
from clipx.training.ema import Ema
from clipx.training.gradients import clip_gradients
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import build_precision

KINDS = ["adamw", "lamb", *(["muon"] if "Muon" in vars(torch.optim) else [])]
STEPS = 4


class Net(nn.Module):
    """Odd widths, so that ranks hold unequal parts, one of them nothing of `head.bias`; a scalar
    and buffers, which are not shared out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 7)
        self.hidden = nn.Linear(7, 9)
        self.norm = nn.BatchNorm1d(9)
        self.head = nn.Linear(9, 1)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.hidden(torch.tanh(self.stem(x)))))
        return self.head(x) * self.logit_scale.exp()

    def layer_depths(self) -> dict[str, tuple[int, int]]:
        order = ["stem", "hidden", "head"]
        names = [name for name, _ in self.named_parameters()]
        return {n: (order.index(m), 3) for n in names for m in order if n.startswith(m)}


def model(*, sharded: bool) -> Net:
    net = Net()
    if sharded:
        for part in (net.stem, net.hidden, net.norm, net.head):
            fully_shard(part)
    return net


def loss(net: Net, step: int) -> Tensor:
    """The same on all ranks, so that the mean of their gradients is each one's."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 1, generator=generator)
    return F.mse_loss(net(x), y)


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def lists(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: whole(tensor).tolist() for name, tensor in state.items()}


def measure(*, sharded: bool) -> dict[str, Any]:
    return {
        "norms": _norms(sharded),
        "weights": {kind: _weights(kind, sharded) for kind in KINDS},
        "average": _average(sharded),
        "overflow": _overflow(sharded),
    }


def on_each_rank(runtime: Runtime) -> dict[str, Any]:
    return measure(sharded=True) | {"rank": runtime.rank}


def _norms(sharded: bool) -> dict[str, Any]:
    net = model(sharded=sharded)
    loss(net, 0).backward()
    parameters = list(net.parameters())
    before = clip_gradients(parameters, None).item()
    told = clip_gradients(parameters, 0.01).item()
    clipped = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return {
        "before": before,
        "told": told,
        "after": clip_gradients(parameters, None).item(),
        "scalar": clip_gradients([net.logit_scale], None).item(),
        "shards": clip_gradients(net.stem.parameters(), None).item(),
        "clipped": lists(clipped),
    }


def _weights(kind: Any, sharded: bool) -> dict[str, Any]:
    net = model(sharded=sharded)
    config = OptimConfig(kind=kind, lr=1e-2, weight_decay=0.1, layer_decay=0.5)
    optimizer = build_optimizer(net, config)
    for step in range(STEPS):
        loss(net, step).backward()
        clip_gradients(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return lists(dict(net.named_parameters()))


def _average(sharded: bool) -> dict[str, Any]:
    """Trained with an average that is saved whole and taken up by another in the middle."""
    net = model(sharded=sharded)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema = Ema(net, 0.9)
    for step in range(STEPS):
        if step == STEPS // 2:
            state = {name: whole(tensor) for name, tensor in ema.state_dict().items()}
            ema = Ema(net, 0.9)
            ema.load_state_dict(state)
        loss(net, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    before = lists(net.state_dict())
    with ema.applied():
        inside = lists(net.state_dict())
        value = loss(net.eval(), 99).item()
    return {
        "state": lists(ema.state_dict()),
        "inside": inside,
        "loss": value,
        "restored": lists(net.state_dict()) == before,
    }


def _overflow(sharded: bool) -> list[float]:
    """Norms of a gradient that is infinite in one number only, in the first rank's part of a
    weight, and of one that is not; both after unscaling."""
    net = model(sharded=sharded)
    scaler = build_precision("fp16", torch.device("cpu")).scaler
    assert scaler is not None
    norms = []
    for bad in (True, False):
        (loss(net, 0) * scaler.factor).backward()
        gradient = net.stem.weight.grad
        assert gradient is not None
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        first = not isinstance(gradient, DTensor) or gradient.device_mesh.get_rank() == 0
        if bad and first:
            local[0, 0] = math.inf
        scaler.unscale(net.parameters())
        norms.append(clip_gradients(net.parameters(), None).item())
        net.zero_grad()
    return norms
