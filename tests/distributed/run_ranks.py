"""Run a function on R processes that talk over gloo, or NCCL, and hand back what each rank
returned."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from clipx.distributed.runtime import Device, Runtime, start


def run_ranks(
    function: Callable[[Runtime], Any],
    world_size: int,
    *,
    device: Device = "cpu",
    timeout_seconds: float = 120,
) -> list[Any]:
    """[function(runtime) of rank 0, of rank 1, ...]. Fails with the traceback of the first rank
    that raises, and at the timeout; no process outlives the call.

    function: of a module's top level, so that a spawned process finds it
    """
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(
            target=_rank, args=(function, rank, world_size, port, device, answers), daemon=True
        )
        for rank in range(world_size)
    ]
    try:
        for process in processes:
            process.start()
        return _collect(processes, answers, time.monotonic() + timeout_seconds)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _collect(processes: list[Any], answers: Any, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(processes):
        while answers.empty():
            dead = [p for p in processes if p.exitcode not in (None, 0)]
            assert not dead, f"a rank died with exit code {dead[0].exitcode} and no word"
            assert time.monotonic() < deadline, f"only ranks {sorted(results)} answered in time"
            time.sleep(0.02)
        rank, fault, value = answers.get()
        assert fault is None, f"rank {rank} raised:\n{fault}"
        results[rank] = value
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    return [results[rank] for rank in range(len(processes))]


def _rank(
    function: Callable[[Runtime], Any],
    rank: int,
    world_size: int,
    port: int,
    device: Device,
    answers: Any,
) -> None:
    faulthandler.enable()  # a crash in a library's native code leaves a traceback
    join_group(rank, world_size, port)
    try:
        runtime = start(device, timeout_minutes=1)
        value = function(runtime)
        runtime.close()
        answers.put((rank, None, value))
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
        raise


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def join_group(rank: int, world_size: int, port: int) -> None:
    """Make this process rank `rank` for whoever reads the environment."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
