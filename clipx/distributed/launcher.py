"""Which of how many processes this one is, by what its launcher has put into the environment.

torchrun and `accelerate launch` say it in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT, which torch and accelerate read; `srun` says it in names of its own.
Everything here works on a mapping and is called with os.environ by `runtime`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, MutableMapping

from clipx.types import RankError, UserError


def adopt_srun(environment: MutableMapping[str, str]) -> None:
    """Where srun started several tasks and nothing between it and this process did, put its words
    into torch's.

    A batch script and the shell of `salloc` have SLURM_PROCID and SLURM_NTASKS too, for the job as
    a whole: a Python that they start alone is one process. Only the tasks of a step have
    SLURM_STEP_ID, and SLURM_STEP_NUM_TASKS counts those of this very step.
    """
    env = environment
    tasks = integer(env, "SLURM_STEP_NUM_TASKS", 1)
    if "RANK" in env or "SLURM_STEP_ID" not in env or tasks == 1:
        return
    node, counts = _node(env)
    env["RANK"] = str(integer(env, "SLURM_PROCID"))
    env["WORLD_SIZE"] = str(tasks)
    env["LOCAL_RANK"] = str(integer(env, "SLURM_LOCALID"))
    env["LOCAL_WORLD_SIZE"] = str(counts[node])
    env.setdefault("MASTER_ADDR", first_host(_given(env, "SLURM_STEP_NODELIST")))
    # Jobs and steps that share a node need ports of their own, and a new start must not meet the
    # sockets of the one before. Below 32768: Linux takes higher ones for outgoing connections.
    salt = [integer(env, f"SLURM_{name}", 0) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    env.setdefault("MASTER_PORT", str(12000 + (salt[0] * 7 + salt[1] * 101 + salt[2]) % 20000))


def integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A number of the launcher's. Raises RankError where it is missing without default, or none."""
    text = environment.get(name) or ""
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text.strip(" ")):
        raise RankError(
            f"the environment variable {name} is {text!r}, not a number of at most 18 digits; "
            "start by torchrun, accelerate launch or srun, which set it, or unset it"
        )
    return int(text)


def _given(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise RankError(f"srun has started this process, but {name} is not set; start it again")
    return environment[name]


def _node(environment: Mapping[str, str]) -> tuple[int, list[int]]:
    """(number of this node, tasks of each node of the step). Raises RankError."""
    text = _given(environment, "SLURM_STEP_TASKS_PER_NODE")
    node = integer(environment, "SLURM_NODEID")
    if not re.fullmatch(_TASKS_PER_NODE, text):
        raise RankError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, not of the form 4(x2),1")
    counts = tasks_per_node(text)
    if node >= len(counts):
        raise RankError(f"SLURM_NODEID is {node}, but the step has {len(counts)} nodes: {text}")
    return node, counts


_NUMBERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)
"""Variables that torch and accelerate convert to integers without a message of their own."""
_TASKS_PER_NODE = r"[0-9]{1,6}(\(x[0-9]{1,6}\))?(,[0-9]{1,6}(\(x[0-9]{1,6}\))?)*"


def first_host(nodelist: str) -> str:
    """`gpu[003-010,12],x1` -> `gpu003`"""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodelist)[0])


def tasks_per_node(text: str) -> list[int]:
    """`4(x2),1` -> [4, 4, 1]"""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or "1")
    return counts


def check(environment: Mapping[str, str], *, gloo: bool) -> None:
    """What would leave processes waiting for one another for minutes, said at once. Raises
    UserError.

    gloo: ranks will talk over it, as those on CPUs do
    """
    env = environment
    for name in _NUMBERS:
        integer(env, name, 0)
    if "RANK" not in env:
        if "MASTER_ADDR" in env and "ACCELERATE_MIXED_PRECISION" in env:
            raise RankError(
                "accelerate launch was told of several processes (it set MASTER_ADDR), but started "
                "this one alone: on CPUs it needs `ACCELERATE_USE_CPU=true accelerate launch "
                "--multi_gpu ...`. To train by one process, unset MASTER_ADDR"
            )
        return
    missing = [n for n in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not env.get(n)]
    if missing:
        raise RankError(
            f"RANK is {env['RANK']}, but {', '.join(missing)} is not set: start by torchrun, "
            "accelerate launch or srun, or unset RANK to train by one process"
        )
    rank, world_size = integer(env, "RANK"), integer(env, "WORLD_SIZE")
    local_size = integer(env, "LOCAL_WORLD_SIZE", world_size)
    if rank >= world_size:
        raise RankError(
            f"RANK is {rank} and WORLD_SIZE {world_size}: ranks count from 0; start by torchrun, "
            "accelerate launch or srun, or unset RANK to train by one process"
        )
    host, port = env["MASTER_ADDR"], integer(env, "MASTER_PORT")
    try:
        if port > 65535:
            raise ValueError("ports end at 65535")
        socket.getaddrinfo(host, port)
    except (OSError, ValueError) as error:  # ValueError: a name that is none, in UTF-8 or IDNA
        raise RankError(
            f"MASTER_ADDR={host}, MASTER_PORT={port}: {socket.gethostname()} cannot resolve this "
            f"({error}); give the name or address of the host of rank 0 as other hosts know it"
        ) from error
    if gloo and world_size > local_size and not env.get("GLOO_SOCKET_IFNAME"):
        _check_own_name()


def _check_own_name() -> None:
    """gloo tells its peers the address that this host's name stands for."""
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        return  # gloo then tries the addresses of the interfaces
    if address.startswith("127.") or address == "::1":
        interfaces = [i for _, i in socket.if_nameindex() if i != "lo"]
        raise RankError(
            f"the name of this host, {name}, stands for {address} (see /etc/hosts), where no other "
            "host finds it; set GLOO_SOCKET_IFNAME to the interface of your cluster's network, one "
            f"of: {', '.join(interfaces)}"
        )


def check_devices(environment: MutableMapping[str, str], *, visible: int) -> None:
    """One GPU for each process of this host: LOCAL_RANK numbers those that this process sees.

    With `--gpus-per-task=1` each task sees one GPU, its own, and that is number 0. Raises UserError
    where there are more processes than GPUs.
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
