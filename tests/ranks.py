"""Processes that start in a moment: a server imports torch and clipx once, and forks them.

start(["train", config], log, world_size=2)   the ranks of a clipx command
run_ranks(function, 2)                        a function on each rank, and its results
RankGroup(2)                                  ranks that stay and answer one call after another
"""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import pkgutil
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import clipx
from clipx.distributed.runtime import Device, Runtime
from clipx.distributed.runtime import start as start_runtime

ROOT = Path(__file__).parents[1]
PRELOADED = ["pytest", "accelerate", "functorch.compile"]
for module in pkgutil.walk_packages(clipx.__path__, "clipx."):
    if not module.name.endswith("__main__"):
        PRELOADED.append(module.name)
# Below the ports that the kernel gives to outgoing connections (32768 and up). Two workers of
# pytest have different process ids, so they look at different ports.
PORTS = itertools.count(10_000 + os.getpid() * 37 % 20_000)


def environment() -> dict[str, str]:
    """One thread per process: bit-identical sums, and no fight over two cores."""
    kept = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@cache
def server() -> Any:
    """multiprocessing's context whose processes are forked from one that has imported PRELOADED.

    A start of Python with all of clipx costs 6 s of a slow core, a fork 0.05 s.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Ranks:
    """The processes of one command. Exit codes are negative for signals, as subprocess has them."""

    def __init__(self, processes: list[Any], log: Path) -> None:
        self.processes = processes
        self.pids: list[int] = [process.pid for process in processes]
        self._log = log

    def kill(self, *ranks: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the given ranks, by default to all. Ranks that have ended are left."""
        for rank in ranks or range(len(self.pids)):
            with suppress(ProcessLookupError):
                os.kill(self.pids[rank], by)

    def wait(self, timeout_seconds: float = 90) -> list[int]:
        deadline = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
        assert None not in codes, f"still running after {timeout_seconds} s:\n{self.said}"
        return codes

    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    @property
    def stdout(self) -> str:
        return self._log.with_name(self._log.name + ".stdout").read_text(errors="replace")

    @property
    def said(self) -> str:
        """stderr of all ranks."""
        return self._log.read_text(errors="replace")


def start(
    arguments: list[str | Path],
    log: Path,
    *,
    world_size: int = 1,
    file_bytes: int | None = None,
    prepare: Callable[[], None] | None = None,
    **variables: str,
) -> Ranks:
    """Start `clipx ...` on `world_size` ranks.

    log: receives stderr, a file beside it stdout
    file_bytes: no file may become larger
    prepare: called in each process before the command; it must be picklable
    variables: of the environment
    """
    for file in (log, log.with_name(log.name + ".stdout")):
        file.touch()
    port = free_port()
    processes = []
    for rank in range(world_size):
        known = environment() | variables
        if world_size > 1:
            known |= rank_variables(rank, world_size, port)
        command = (list(map(str, arguments)), log, file_bytes, known, prepare)
        # No daemon: those may not start the processes of a loader.
        process = server().Process(target=_run_command, args=command)
        process.start()
        processes.append(process)
    return Ranks(processes, log)


def _enter(variables: dict[str, str]) -> None:
    """Make this fork like a process of its own: with these variables of the environment, and
    Python's own way to start a loader's workers, which multiprocessing set to this one's."""
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)


def _run_command(
    arguments: list[str],
    log: Path,
    file_bytes: int | None,
    variables: dict[str, str],
    prepare: Callable[[], None] | None = None,
) -> None:
    from clipx import cli

    _enter(variables)
    os.chdir(ROOT)
    streams = (Path(os.devnull), log.with_name(log.name + ".stdout"), log)
    for number, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if prepare is not None:
        prepare()
    sys.argv = ["clipx", *arguments]
    cli.run()


def run_ranks(
    function: Callable[[Runtime], Any],
    world_size: int,
    *,
    device: Device = "cpu",
    timeout_seconds: float = 120,
) -> list[Any]:
    """[function(runtime) of rank 0, of rank 1, ...]. Fails with the traceback of the first rank
    that raises, and at the timeout; no process outlives the call.

    function: of a module's top level, so that another process finds it
    """
    # The server hides GPUs, and CUDA does not survive a fork.
    context = server() if device == "cpu" else multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    port = free_port()
    processes = []
    for rank in range(world_size):
        variables = dict(os.environ) | rank_variables(rank, world_size, port)
        arguments = (function, rank, variables, device, answers)
        processes.append(context.Process(target=_run_rank, args=arguments, daemon=True))
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


def _run_rank(
    function: Callable[[Runtime], Any],
    rank: int,
    variables: dict[str, str],
    device: Device,
    answers: Any,
) -> None:
    faulthandler.enable()  # a crash in a library's native code leaves a traceback
    _enter(variables)
    try:
        runtime = start_runtime(device, timeout_minutes=1)
        value = function(runtime)
        runtime.close()
        answers.put((rank, None, value))
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
        raise


class RankGroup:
    """`group(function, argument)` is [function(runtime, argument) of rank 0, of rank 1, ...].

    function: of a module's top level, so that another process finds it
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        port = free_port()
        for rank in range(world_size):
            near, far = server().Pipe()
            variables = dict(os.environ) | rank_variables(rank, world_size, port)
            process = server().Process(
                target=_serve, args=(rank, world_size, variables, far), daemon=True
            )
            process.start()
            self._pipes.append(near)
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


def _serve(rank: int, world_size: int, variables: dict[str, str], pipe: Connection) -> None:
    _enter(variables)
    runtime = start_runtime("cpu", timeout_minutes=1)
    if not dist.is_initialized():  # one process needs no group, but pools can be tried in one
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        function, argument = pipe.recv()
        try:
            with torch.random.fork_rng():
                answer = (None, function(runtime, argument))
        except Exception:  # noqa: BLE001  raised again by the caller of the group
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
