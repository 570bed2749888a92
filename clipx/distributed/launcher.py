"""The rank and the number of processes, from the environment variables of the launcher.

torchrun and `accelerate launch` set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, which torch and accelerate read; `srun` has its own names. The functions here take a
mapping; `runtime` calls them with os.environ.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Mapping, MutableMapping

from clipx.types import RankError, UserError


def adopt_srun(environment: MutableMapping[str, str]) -> None:
    """Set torch's variables from those of srun, if srun started several tasks and no other launcher
    is in between.

    A batch script and the shell of `salloc` have SLURM_PROCID and SLURM_NTASKS too, for the job as
    a whole, but a Python that they start is one process. Only the tasks of a step have
    SLURM_STEP_ID, and SLURM_STEP_NUM_TASKS counts those of this step.
    """
    env = environment
    tasks = integer(env, "SLURM_STEP_NUM_TASKS", 1)
    if "RANK" in env or "SLURM_STEP_ID" not in env or tasks == 1:
        return
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"):
        if not env.get(name):
            raise RankError(f"srun has started this process, but {name} is not set; start it again")
    per_node = env["SLURM_STEP_TASKS_PER_NODE"]
    if not re.fullmatch(_TASKS_PER_NODE, per_node):
        raise RankError(f"SLURM_STEP_TASKS_PER_NODE is {per_node!r}, not of the form 4(x2),1")
    counts = tasks_per_node(per_node)
    node = integer(env, "SLURM_NODEID")
    if node >= len(counts):
        raise RankError(f"SLURM_NODEID is {node}, but the step has {len(counts)} nodes: {per_node}")
    env["RANK"] = str(integer(env, "SLURM_PROCID"))
    env["WORLD_SIZE"] = str(tasks)
    env["LOCAL_RANK"] = str(integer(env, "SLURM_LOCALID"))
    env["LOCAL_WORLD_SIZE"] = str(counts[node])
    env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
    # Jobs and steps that share a node need different ports, and a new start must not meet the
    # sockets of the one before. Below 32768, because Linux uses higher ones for outgoing
    # connections.
    job_id = integer(env, "SLURM_JOB_ID", 0)
    step_id = integer(env, "SLURM_STEP_ID", 0)
    restart_count = integer(env, "SLURM_RESTART_COUNT", 0)
    port = 12000 + (7 * job_id + 101 * step_id + restart_count) % 20000
    env.setdefault("MASTER_PORT", str(port))


def is_reporting_rank(environment: MutableMapping[str, str]) -> bool:
    """True on the process that reports errors of all processes. Needs no torch."""
    with contextlib.suppress(UserError):  # the caller reports malformed values
        adopt_srun(environment)
    return environment.get("RANK", "0") == "0"


def integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The value of a variable. Raises RankError if it is not a number, or missing without
    default."""
    text = environment.get(name) or ""
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(" ")):
        raise RankError(
            f"the environment variable {name} is {text!r}, not a number of at most 18 digits; "
            "start by torchrun, accelerate launch or srun, which set it, or unset it"
        )
    return int(text)


_INTEGERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)
"""Variables that torch and accelerate convert to integers without a clear error."""
_TASKS_PER_NODE = r"[0-9]{1,6}(\(x[0-9]{1,6}\))?(,[0-9]{1,6}(\(x[0-9]{1,6}\))?)*"


def first_host(nodelist: str) -> str:
    """`gpu[003-010,12],x1` -> `gpu003`"""
    first = re.split(r",(?![^[]*\])", nodelist)[0]  # commas in brackets separate numbers
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first)


def tasks_per_node(text: str) -> list[int]:
    """`4(x2),1` -> [4, 4, 1]"""
    counts: list[int] = []  # [tasks of node 0, of node 1, ...]
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or "1")
    return counts


def check(environment: Mapping[str, str], *, gloo: bool) -> None:
    """Raise UserError for variables with which processes would wait for one another for minutes.

    gloo: ranks communicate by it, as they do on CPUs
    """
    env = environment
    for name in _INTEGERS:
        integer(env, name, 0)
    if "RANK" not in env:
        if "MASTER_ADDR" in env and "ACCELERATE_MIXED_PRECISION" in env:
            raise RankError(
                "accelerate launch was configured for several processes (it set MASTER_ADDR), but "
                "started this one alone: on CPUs it needs `ACCELERATE_USE_CPU=true accelerate "
                "launch --multi_gpu ...`. To train by one process, unset MASTER_ADDR"
            )
        return
    missing = [n for n in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(n)]
    if missing:
        raise RankError(
            f"RANK is {env['RANK']}, but {', '.join(missing)} is not set: start by torchrun, "
            "accelerate launch or srun, or unset RANK to train by one process"
        )
    rank = integer(env, "RANK")
    world_size = integer(env, "WORLD_SIZE")
    if rank >= world_size:
        raise RankError(
            f"RANK is {rank} and WORLD_SIZE {world_size}: ranks count from 0; start by torchrun, "
            "accelerate launch or srun, or unset RANK to train by one process"
        )
    _check_address(env["MASTER_ADDR"], integer(env, "MASTER_PORT"))
    # gloo sends each peer the address that this host's name stands for.
    has_other_hosts = world_size > integer(env, "LOCAL_WORLD_SIZE", world_size)
    if gloo and has_other_hosts and not env.get("GLOO_SOCKET_IFNAME"):
        _check_own_name()


def _check_address(host: str, port: int) -> None:
    try:
        if port > 65535:
            raise ValueError("ports end at 65535")
        socket.getaddrinfo(host, port)
    except (OSError, ValueError) as error:  # ValueError: not a name in UTF-8 or IDNA
        raise RankError(
            f"MASTER_ADDR={host}, MASTER_PORT={port}: {socket.gethostname()} cannot resolve this "
            f"({error}); give the name or address of the host of rank 0 as other hosts know it"
        ) from error


def _check_own_name() -> None:
    """Check that other hosts can reach the address of this host's name, which gloo sends them."""
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        return  # then gloo tries the addresses of the interfaces
    if address.startswith("127.") or address == "::1":
        interfaces = [i for _, i in socket.if_nameindex() if i != "lo"]
        raise RankError(
            f"the name of this host, {name}, stands for {address} (see /etc/hosts), where no other "
            "host finds it; set GLOO_SOCKET_IFNAME to the interface of your cluster's network, one "
            f"of: {', '.join(interfaces)}"
        )


def check_devices(environment: MutableMapping[str, str], *, visible: int) -> None:
    """Check that there is a GPU for each process of this host; LOCAL_RANK is its number among those
    that this process sees. Raises UserError.

    With `--gpus-per-task=1` each task sees one GPU, its own, and that has number 0.
    """
    env = environment
    local = integer(env, "LOCAL_WORLD_SIZE", 1)
    if visible == 1 and local > 1 and "SLURM_STEP_GPUS" in env:
        env["LOCAL_RANK"] = "0"
    elif visible < local:
        raise UserError(
            f"{local} processes on {socket.gethostname()}, but {visible} GPUs are visible; start "
            f"{visible} a host, or use device=cpu"
        )
