"""Bytes that a rank sends in a step, counted where they are handed to torch.distributed, beside the
formulas of docs/distributed.md; and the peer's loss and gradients on the same ranks."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
import warnings
from typing import Any

import open_clip.loss as peer
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed import collectives
from clipx.distributed.pool import PoolConfig, build_pool
from clipx.losses import infonce, sigmoid

LOCAL_ROWS, WIDTH = 256, 512
KINDS = ("gathered", "chunked", "ring")


def formula(loss: str, kind: str, world_size: int) -> int:
    """With B rows of D floats on each of R ranks: (R - 1) x B x 4 bytes for each number of a row
    that travels, and the comparison of shapes, 8 int64 from each rank."""
    unit = (world_size - 1) * LOCAL_ROWS * 4
    shapes = (world_size - 1) * 8 * 8
    gradients = WIDTH  # of the texts, sent back
    if loss == "sigmoid":  # all is computed in one visit
        return unit * (WIDTH + gradients) + shapes
    # Texts are gathered for forward and for backward, or kept.
    texts = WIDTH if kind == "gathered" else 2 * WIDTH
    # A log-sum-exp is reduced as a maximum (all-reduce: twice) and a sum; in a ring it is one
    # number. Backward sends normalizers and their gradients.
    normalizers = 1 if kind == "ring" else 3
    return unit * (texts + normalizers + 2 + gradients) + shapes


class _Counter:
    """Wraps the calls by which clipx sends to other ranks. An all-gather and a reduce-scatter send
    all but one of R parts in any good algorithm, an all-reduce twice that."""

    def __init__(self, world_size: int) -> None:
        self.sent = 0.0
        names = vars(collectives)
        gather, scatter = names["all_gather_single"], names["reduce_scatter_single"]
        all_reduce, p2p = dist.all_reduce, dist.P2POp
        share = (world_size - 1) / world_size

        def count(call: Any, large: int, times: float) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                self.sent += times * args[large].nbytes
                return call(*args, **kwargs)

            return counted

        names["all_gather_single"] = count(gather, 0, share)
        names["reduce_scatter_single"] = count(scatter, 1, share)
        vars(dist)["all_reduce"] = count(all_reduce, 0, 2 * share)

        def operation(call: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sent += tensor.nbytes if call is dist.isend else 0
            return p2p(call, tensor, *args, **kwargs)

        vars(dist)["P2POp"] = operation


def _rank(rank: int, world_size: int, port: int, answers: Any) -> None:
    warnings.filterwarnings("ignore")  # the peer calls what torch deprecates
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    generator = torch.Generator().manual_seed(rank)
    rows = [
        F.normalize(torch.randn(LOCAL_ROWS, WIDTH, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    ]
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    bias = torch.tensor(-10.0, requires_grad=True)
    share = {"rank": rank, "world_size": world_size}
    theirs = {
        "infonce": peer.ClipLoss(local_loss=True, gather_with_grad=True, **share)(
            *rows, scale.exp()
        ),
        "sigmoid": peer.SigLipLoss(dist_impl="shift", **share)(*rows, scale.exp(), bias),
    }
    results = {}
    for name, loss in (("infonce", infonce.InfoNCE()), ("sigmoid", sigmoid.Sigmoid())):
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(theirs[name], rows)])
        for kind in KINDS:
            counter = _Counter(world_size)
            pool = build_pool(PoolConfig(kind=kind), world_size=world_size)
            out = loss(*rows, logit_scale=scale, logit_bias=bias, pool=pool)
            found = torch.cat([g.flatten() for g in torch.autograd.grad(out.loss, rows)])
            sent = counter.sent
            off = (found - expected).norm() / expected.norm()
            value = abs(out.loss.item() / theirs[name].item() - 1)
            results[f"{name} {kind}"] = (round(sent), max(off.item(), value))
            dist.barrier()
    dist.destroy_process_group()
    answers.put(results)


def measured(world_size: int) -> dict[str, tuple[int, float]]:
    """`loss pool` -> (bytes that a rank sent, relative difference from the peer, of the value or of
    the gradients of its rows, whichever is larger)."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, answers))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {key: (max(f[key][0] for f in found), max(f[key][1] for f in found)) for key in found[0]}
