"""Ranks by the words of each launcher, and mistakes of a launch that would end in a long wait."""

from __future__ import annotations

import re
import socket

import pytest

from clipx.distributed import launcher
from clipx.types import RankError, UserError

TASK = {  # of `srun -N2 -n3 python`, as SLURM 22.05 sets it
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
RANKS = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_a_task_of_srun_is_a_rank() -> None:
    env = dict(TASK)
    launcher.adopt_srun(env)
    port = env.pop("MASTER_PORT")
    assert env == TASK | {
        "RANK": "2",
        "WORLD_SIZE": "3",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "n1",
    }
    assert 12000 <= int(port) < 32000


def test_all_tasks_of_a_step_meet_at_one_port_and_other_steps_and_starts_elsewhere() -> None:
    def port(**changes: str) -> str:
        env = TASK | changes
        launcher.adopt_srun(env)
        return env["MASTER_PORT"]

    assert port() == port(SLURM_PROCID="0", SLURM_NODEID="0")
    others = [{}, {"SLURM_JOB_ID": "8"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}]
    assert len({port(**changes) for changes in others}) == len(others)


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="plain python"),
        pytest.param(TASK | RANKS, id="torchrun under srun"),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
            id="python in a batch script",
        ),
        pytest.param(
            TASK | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
            id="python in the shell of salloc",
        ),
    ],
)
def test_whoever_is_no_bare_task_of_srun_is_left_alone(env: dict[str, str]) -> None:
    after = dict(env)
    launcher.adopt_srun(after)
    assert after == env


def test_an_address_that_was_given_is_kept() -> None:
    env = TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    launcher.adopt_srun(env)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("10.0.0.1", "4000")


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-010,12],x1", "gpu003"),
        ("a7,gpu[3,5]", "a7"),
        ("rack[2-4]node[07,09]", "rack2node07"),
        ("a-b-c[1].cluster", "a-b-c1.cluster"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, first: str) -> None:
    assert launcher.first_host(nodelist) == first


def test_tasks_of_each_node() -> None:
    assert launcher.tasks_per_node("8(x2),1,4(x3)") == [8, 8, 1, 4, 4, 4]


def test_a_good_launch_passes() -> None:
    launcher.check({}, gloo=True)
    launcher.check(RANKS | {"LOCAL_WORLD_SIZE": "2"}, gloo=True)
    launcher.check(RANKS | {"GLOO_SOCKET_IFNAME": "lo"}, gloo=True)
    launcher.check({"MASTER_ADDR": "n1"}, gloo=True)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (RANKS | {"MASTER_ADDR": "no.such.host.invalid"}, "MASTER_ADDR=no.such.host.invalid"),
        (RANKS | {"MASTER_PORT": "2950x"}, "MASTER_PORT is '2950x', not a number"),
        (RANKS | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000: "),
        (RANKS | {"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', not a number"),
        (RANKS | {"RANK": "-1"}, "RANK is '-1', not a number"),
        (RANKS | {"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2: ranks count from 0"),
        (RANKS | {"LOCAL_WORLD_SIZE": "9" * 30}, "not a number of at most 18 digits"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', not a number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x', not a number"),
        (RANKS | {"MASTER_ADDR": "a" * 300}, "cannot resolve this"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK is 1, but MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        (
            {"MASTER_ADDR": "n1", "ACCELERATE_MIXED_PRECISION": "no"},
            "started this one alone: on CPUs it needs `ACCELERATE_USE_CPU=true accelerate launch",
        ),
    ],
)
def test_a_launch_that_would_hang_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        launcher.check(env, gloo=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "abc"}, "SLURM_STEP_NUM_TASKS is 'abc'"),
        ({"SLURM_PROCID": "abc"}, "SLURM_PROCID is 'abc'"),
        ({"SLURM_NODEID": ""}, "SLURM_NODEID is ''"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID is 2, but the step has 2 nodes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "x(2"}, "is 'x(2', not of the form 4(x2),1"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_JOB_ID": "abc"}, "SLURM_JOB_ID is 'abc'"),
    ],
)
def test_a_variable_of_srun_that_is_wrong_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RankError, match=re.escape(message)):
        launcher.adopt_srun(TASK | changes)


def test_a_host_that_its_peers_would_look_for_at_home_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian writes `127.0.1.1 <name>` into /etc/hosts, and gloo tells that to its peers."""
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(UserError, match="set GLOO_SOCKET_IFNAME"):
        launcher.check(RANKS, gloo=True)
    launcher.check(RANKS, gloo=False)
    launcher.check(RANKS | {"GLOO_SOCKET_IFNAME": "eth0"}, gloo=True)
    launcher.check(RANKS | {"LOCAL_WORLD_SIZE": "2"}, gloo=True)  # all on this host


def test_each_process_has_a_gpu_of_its_own() -> None:
    env = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    launcher.check_devices(env, visible=4)
    assert env["LOCAL_RANK"] == "3"
    with pytest.raises(UserError, match=r"4 processes on .*, but 2 GPUs are visible; start 2 a"):
        launcher.check_devices(env, visible=2)
    with pytest.raises(UserError, match="but 1 GPUs are visible"):
        launcher.check_devices(env, visible=1)
    env["SLURM_STEP_GPUS"] = "0,1,2,3"  # --gpus-per-task=1: each task sees one, its own
    launcher.check_devices(env, visible=1)
    assert env["LOCAL_RANK"] == "0"
