"""R processes that stay, so that hypothesis can ask them one thing after another."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from run_ranks import free_port, join_group

from clipx.distributed.runtime import Runtime, start


class RankGroup:
    """`group(function, argument)` is [function(runtime, argument) of rank 0, of rank 1, ...].

    function: of a module's top level, so that a spawned process finds it
    """

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.world_size = world_size
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        port = free_port()
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, port, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __call__(self, function: Callable[[Runtime, Any], Any], argument: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, argument))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(100), f"rank {rank} does not answer: a deadlock?"
            fault, value = pipe.recv()
            assert fault is None, f"rank {rank} raised:\n{fault}"
            answers.append(value)
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    join_group(rank, world_size, port)
    runtime = start("cpu", timeout_minutes=1)
    if not dist.is_initialized():  # one process needs no group, but pools can be tried in one
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        function, argument = pipe.recv()
        try:
            with torch.random.fork_rng():
                answer = (None, function(runtime, argument))
        except Exception:  # noqa: BLE001  the asker raises it
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
