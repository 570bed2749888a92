"""The same cases over NCCL, one GPU for each rank."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from loss_checks import Case, oracle, train
from run_ranks import free_port, join_group

from clipx.distributed.runtime import start

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices"),
]
CASES = [
    Case(loss, pool, kinds=1, queue=5, steps=3)
    for loss in ("infonce", "sigmoid")
    for pool in ("gathered", "chunked", "ring")
]


def _rank(rank: int, world_size: int, port: int, answers: Any) -> None:
    join_group(rank, world_size, port)
    runtime = start("cuda", timeout_minutes=1)
    answers.put((rank, dist.get_backend(), [train(runtime, case) for case in CASES]))
    runtime.close()


@pytest.mark.parametrize("world_size", sorted({2, min(GPUS, 4)}))
def test_each_loss_with_each_pool_equals_one_process_over_nccl(world_size: int) -> None:
    """Ring exchanges on two ranks are where send and receive wait for one another."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, answers), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        rank, backend, found = answers.get()
        assert backend == "nccl"
        for case, result in zip(CASES, found, strict=True):
            rows, model, _ = oracle(case, world_size)
            mean = rows.view(world_size, -1)[rank].mean().item()
            assert result["loss"] == pytest.approx(mean, rel=1e-10)
            for name, parameter in model.named_parameters():
                gradient = torch.from_numpy(np.asarray(result["gradients"][name]))
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-11)
