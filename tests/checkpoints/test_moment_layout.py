"""Moments in the memory layout of their parameter: fused optimizers update flat memory."""

from __future__ import annotations

import copy

import torch
from torch import nn

from clipx.checkpoints.sharded import load_optimizer, whole


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape).to(memory_format=torch.channels_last)
    optimizer.step()


def test_a_channels_last_kernel_goes_on_as_without_a_checkpoint() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)
    stepped(conv, optimizer, 1)

    resumed = copy.deepcopy(conv)
    other = torch.optim.AdamW(resumed.parameters(), lr=0.1, fused=True)
    # As checkpoints have them: contiguous.
    state = whole(
        optimizer.state_dict(), copy=lambda t: t.clone(memory_format=torch.contiguous_format)
    )
    load_optimizer(other, state)
    for seed in (2, 3):
        stepped(conv, optimizer, seed)
        stepped(resumed, other, seed)
        assert torch.equal(conv.weight, resumed.weight)
