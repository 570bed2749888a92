"""What tests/slurm/run.sh does on the cluster, and its table. Runs on the machine that the lab is on."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import ROOT, metrics, weights_digest, write_config, write_corpus

LAB = ROOT / "tests/slurm/lab/lab.sh"
STEPS, PACE, CRAWL = 100, 0.05, 1.0
START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


def lab(*arguments: object) -> str:
    done = subprocess.run(
        ["bash", str(LAB), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"lab.sh {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def slurm(*arguments: object) -> str:
    return lab("on", "ctl", *arguments)


class Job:
    """A run under one launcher."""

    def __init__(self, launcher: str, folder: Path, config: Path) -> None:
        self.launcher, self.run, self.pace = launcher, folder / launcher, folder / f"{launcher}.pace"
        self.pace.write_text(str(PACE))
        evaluators = f"evaluators={{pace: {{name: slurm.pace, path: {self.pace}}}}}"
        self.logs = self.run / "logs"
        self.rows: list[tuple[str, ...]] = []
        arguments = [config, f"run_dir={self.run}", evaluators]
        submit = ["env", f"LAUNCH={launcher}", sys.executable, "launch/submit.py", *arguments]
        self.id = slurm(*submit, "--nodes", 2, "--time", "30:00").split()[-1]

    def field(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", slurm("scontrol", "-o", "show", "job", self.id))
        assert found, name
        return found[1]

    @property
    def step(self) -> int:
        file = self.run / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def resumed(self) -> list[int]:
        """The steps at which it went on, one for each start after the first."""
        text = "".join(file.read_text() for file in self.logs.glob("*-n1.out"))
        return [int(step) for step in re.findall(r"resumed from \S+ at step (\d+)", text)]

    def hold(self, step: int) -> bool:
        """True once it is past `step`, from where it crawls."""
        if self.step < step:
            return False
        self.pace.write_text(str(CRAWL))
        return True

    def show(self) -> str:
        files = sorted(self.logs.glob("*")) if self.logs.exists() else []
        return "\n".join(f"--- {f}\n" + "\n".join(f.read_text().splitlines()[-25:]) for f in files)


def until(jobs: list[Job], what: str, reached: Callable[[Job], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not all([reached(job) for job in jobs]):
        if time.monotonic() > end:
            late = [job for job in jobs if not reached(job)]
            raise SystemExit(f"not within {seconds:.0f} s: {what}\n" + "\n".join(j.show() for j in late))
        time.sleep(0.3)


def preempt(jobs: list[Job]) -> None:
    slurm("sbatch", "-p", "high", "-N2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")


def notice(jobs: list[Job]) -> None:
    for job in jobs:
        slurm("scancel", "--batch", "--signal=USR1", job.id)


def requeue(jobs: list[Job]) -> None:
    for job in jobs:
        slurm("scontrol", "requeue", job.id)


def lose_host(jobs: list[Job]) -> None:
    lab("crash", "n2")
    until(jobs, "back in the queue", lambda job: job.field("JobState") == "PENDING", 60)
    lab("boot", "n2")


def disturb(jobs: list[Job], name: str, act: Callable[[list[Job]], None], step: int) -> None:
    until(jobs, f"at step {step}", lambda job: job.hold(step))
    starts, reached = {job: len(job.resumed()) for job in jobs}, {job: job.step for job in jobs}
    say(f"{name}, at steps {', '.join(str(job.step) for job in jobs)}")
    began = time.monotonic()
    act(jobs)
    back: dict[Job, float] = {}

    def resumed(job: Job) -> bool:
        if len(job.resumed()) > starts[job]:
            back.setdefault(job, time.monotonic() - began)
            job.pace.write_text(str(PACE))
        return job in back

    until(jobs, f"training again after: {name}", resumed)
    for job in jobs:
        row = (job.launcher, name, reached[job], job.resumed()[-1], f"{back[job]:.0f} s")
        job.rows.append(tuple(map(str, row)))


def table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


DISTURBANCES: list[tuple[str, Callable[[list[Job]], None], int]] = [
    ("a job of higher priority", preempt, 15),
    ("notice of the time limit", notice, 30),
    ("scontrol requeue", requeue, 45),
    ("loss of a host", lose_host, 60),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--launchers", nargs="*", default=["torchrun", "srun", "accelerate"])
    options = parser.parse_args()
    folder: Path = options.folder
    data: dict[str, Any] = {"duration": f"{STEPS} steps"}
    config = write_config(folder, write_corpus(folder / "corpus"), **data)
    still = folder / "undisturbed"
    say("undisturbed, by srun alone")
    train = [sys.executable, "-m", "clipx", "train", config, f"run_dir={still}"]
    slurm("srun", "--nodes=2", "--ntasks-per-node=1", *train)
    say(f"submitting {', '.join(options.launchers)}")
    jobs = [Job(launcher, folder, config) for launcher in options.launchers]
    for name, act, step in DISTURBANCES:
        disturb(jobs, name, act, step)
    until(jobs, "finished", lambda job: job.field("JobState") == "COMPLETED")

    table([("launcher", "disturbance", "at step", "resumed from", "again after")] + [r for j in jobs for r in j.rows])
    print()
    head = ("run", "starts", "step", "fingerprint", "weights", "as undisturbed")
    rows, right = [head], metrics(still)
    same = True
    for name, run, starts in [("undisturbed", still, 1), *((j.launcher, j.run, int(j.field("Restarts")) + 1) for j in jobs)]:
        equal = metrics(run) == right and weights_digest(run, STEPS) == weights_digest(still, STEPS)
        same &= equal
        last = metrics(run)[-1]
        rows.append((name, str(starts), str(last["step"]), last["fingerprint"], weights_digest(run, STEPS)[:12], "yes" if equal else "NO"))
    table(rows)
    print()
    print(subprocess.run([sys.executable, "-m", "clipx", "runs", str(folder)], capture_output=True, text=True).stdout)
    if not same:
        raise SystemExit("a disturbed run differs from the undisturbed one")
    say("all runs are as the undisturbed one, bit by bit")


if __name__ == "__main__":
    main()
