"""What tests/slurm/run.sh does on the cluster, and its table."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tiny_runs import ROOT, metrics, weights_digest, write_config, write_corpus

LAB = ROOT / "tests/slurm/lab/lab.sh"
STEPS, PACE, CRAWL = 100, 0.1, 6.0  # seconds for five steps
START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.0f} s] {text}", flush=True)


def clipx(*arguments: object) -> str:
    command = [sys.executable, "-m", "clipx", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def lab(*arguments: object) -> str:
    done = subprocess.run(
        ["bash", str(LAB), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"lab.sh {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def slurm(*arguments: object) -> str:
    return lab("on", "ctl", *arguments)


class Job:
    """A run under one launcher."""

    def __init__(self, launcher: str, folder: Path, config: Path) -> None:
        self.launcher, self.run, self.logs = launcher, folder / launcher, folder / launcher / "logs"
        self.pace = folder / f"{launcher}.pace"
        self.sleep(CRAWL)
        self.rows: list[tuple[str, ...]] = []
        evaluators = f"evaluators={{pace: {{name: slurm.pace, path: {self.pace}}}}}"
        arguments = [config, f"run_dir={self.run}", evaluators]
        if launcher == "torchrun":  # one by submit.py, which prints `job 3`, the others by hand
            submit = [sys.executable, "launch/submit.py", f"--launch={launcher}"]
            options = ["--nodes=2", "--time=30:00"]
        else:
            submit = ["env", f"LAUNCH={launcher}", f"LOG_DIR={self.logs}", "sbatch", "--parsable"]
            options = ["--nodes=2", "--time=30:00", f"--output={self.logs}/%j.out"]
            options += ["launch/slurm.sbatch"]
        self.logs.mkdir(parents=True)
        self.id = slurm(*submit, *options, *arguments).split()[-1]

    def sleep(self, seconds: float) -> None:
        """From now on for so long after every fifth step."""
        new = self.pace.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.pace)

    def field(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", slurm("scontrol", "-o", "show", "job", self.id))
        assert found, name
        return found[1]

    @property
    def starts(self) -> str:
        return str(int(self.field("Restarts")) + 1)

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
        self.sleep(CRAWL)
        return True

    def show(self) -> str:
        files = sorted(self.logs.glob("*")) if self.logs.exists() else []
        return "\n".join(f"--- {f}\n" + "\n".join(f.read_text().splitlines()[-15:]) for f in files)


def until(jobs: list[Job], what: str, reached: Callable[[Job], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while [job for job in jobs if not reached(job)]:  # each is asked each time
        if time.monotonic() > end:
            late = [job for job in jobs if not reached(job)]
            raise SystemExit(
                f"not within {seconds:.0f} s: {what}\n" + "\n".join(j.show() for j in late)
            )
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
        return job in back  # at a crawl, so that none has left before the last is back

    until(jobs, f"training again after: {name}", resumed)
    for job in jobs:
        job.sleep(PACE)
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


def report(jobs: list[Job], still: Path) -> None:
    """Print what happened. Ends with an error where a run is not as the one that nothing
    disturbed."""
    head = ("launcher", "disturbance", "at step", "resumed from", "again after")
    table([head, *(row for job in jobs for row in job.rows)])
    print()
    runs = [("undisturbed", still, "1"), *((job.launcher, job.run, job.starts) for job in jobs)]
    rows: list[tuple[str, ...]] = [("run", "starts", "step", "fingerprint", "weights", "equal")]
    for name, run, starts in runs:
        digest, last = weights_digest(run, STEPS), metrics(run)[-1]
        equal = digest == weights_digest(still, STEPS) and metrics(run) == metrics(still)
        step, fingerprint = str(last["step"]), last["fingerprint"]
        rows.append((name, starts, step, fingerprint, digest[:12], "yes" if equal else "NO"))
    table(rows)
    print()
    if any(row[-1] == "NO" for row in rows):
        raise SystemExit("a disturbed run is not as the undisturbed one")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--launchers", nargs="*", default=["torchrun", "srun", "accelerate"])
    options = parser.parse_args()
    folder: Path = options.folder
    corpus = write_corpus(folder / "corpus")
    config = write_config(folder, corpus, duration=f"{STEPS} steps")
    still = folder / "undisturbed"
    say("undisturbed, by srun alone")
    train = [sys.executable, "-m", "clipx", "train", config, f"run_dir={still}"]
    slurm("srun", "--nodes=2", "--ntasks-per-node=1", *train)
    say(f"submitting {', '.join(options.launchers)}")
    jobs = [Job(launcher, folder, config) for launcher in options.launchers]
    for job in jobs:
        job.sleep(PACE)
    for name, act, step in DISTURBANCES:
        disturb(jobs, name, act, step)
    until(jobs, "finished", lambda job: job.field("JobState") == "COMPLETED")
    report(jobs, still)
    print(clipx("runs", folder))
    say("all runs are as the undisturbed one, bit by bit")


if __name__ == "__main__":
    main()
