"""Submit a training run, or the evaluation of its checkpoints, to SLURM.

    python launch/submit.py configs/run/x.yaml --nodes 8 --gpus-per-node 8 --time 24:00:00
    python launch/submit.py --eval runs/x --gpus-per-node 1 --time 1:00:00

key=value may follow, as in training. Checks first that the config loads and that its global batch,
streams and micro-batches fit so many processes; prints the command (with --dry-run the script too,
and nothing is submitted) and the job's number. Options that are not named below go to sbatch as
they are, with a value behind `=`: --account=lab --partition=gpu --qos=high --exclude=n3. Run it
from the folder with data and .venv.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import gcd
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone that is not installed

from clipx.checkpoints.manifest import list_checkpoints  # noqa: E402
from clipx.types import UserError  # noqa: E402

SCRIPT = ROOT / "launch/slurm.sbatch"


def main(argv: Sequence[str] | None = None) -> None:
    options, more = parse(argv)
    try:
        if options.eval:
            command, script, environment = eval_job(options, more)
        else:
            command, script, environment = train_job(options, more)
    except (UserError, OSError) as error:
        refuse(str(error))
    shown = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    print(" ".join([*shown, shlex.join(command)]))
    if options.dry_run:
        print(f"\n{script}")
        return
    if shutil.which("sbatch") is None:
        refuse("there is no sbatch on this machine; go to a login node, or add --dry-run")
    done = subprocess.run(
        command, input=script, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise SystemExit(f"submit: sbatch refused: {done.stderr.strip()}")
    print(f"job {done.stdout.strip().split(';')[0]}")  # on a federation `number;cluster`


def refuse(message: str) -> NoReturn:
    """Exit as the command line does after a mistake of the user."""
    print(f"submit: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(our options, options for sbatch). `key=value` may stand anywhere behind the config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, help="YAML file of the run")
    parser.add_argument("--nodes", type=count, default=1)
    parser.add_argument("--gpus-per-node", type=gpus, default=0, help="0: train on CPUs")
    parser.add_argument(
        "--per-node", type=count, help="processes a node (default: its GPUs, or 1 without)"
    )
    parser.add_argument("--time", default="24:00:00", help="[D-]H:M:S (default %(default)s)")
    parser.add_argument("--launch", choices=("torchrun", "srun", "accelerate"), default="torchrun")
    parser.add_argument(
        "--eval", type=Path, metavar="RUN", help="a job for each of its checkpoints"
    )
    parser.add_argument("--every", type=count, default=1, help="--eval: each N-th checkpoint")
    parser.add_argument("--at-once", type=count, default=8, help="--eval: jobs at the same time")
    parser.add_argument("--dry-run", action="store_true", help="show, do not submit")
    options, rest = parser.parse_known_args(argv)
    options.overrides = [text for text in rest if text[:1] != "-" and "=" in text]
    more = [text for text in rest if text not in options.overrides]
    if (options.config is None) == (options.eval is None):
        parser.error("give the YAML file of a run, or --eval RUN")
    if wrong := [text for text in more if text[:1] != "-"]:
        parser.error(
            f"{wrong[0]}: neither key=value nor an option; write --option=value for sbatch"
        )
    options.per_node = options.per_node or options.gpus_per_node or 1
    return options, more


def gpus(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1_000_000:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    number = gpus(text)
    if number == 0:
        raise ValueError(text)
    return number


Job = tuple[list[str], str, dict[str, str]]
"""command, what it reads as its script, variables for it"""


def train_job(options: argparse.Namespace, more: Sequence[str]) -> Job:
    """Raises UserError with every complaint about the config."""
    from clipx.config import load
    from clipx.training.config import TrainConfig

    config = load(TrainConfig, options.config, options.overrides)
    run = Path(config.run_dir)
    ranks = options.nodes * options.per_node
    complaints = list(
        misfits(
            ranks,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            streams=None if (run / "checkpoints").exists() else config.data.streams,
        )
    )
    if complaints:
        place = f"{options.nodes} nodes x {options.per_node} processes = {ranks} ranks"
        raise UserError("\n  ".join([f"{options.config} does not fit {place}:", *complaints]))
    logs = run / "logs"
    if not options.dry_run:
        logs.mkdir(parents=True, exist_ok=True)  # SLURM does not, and loses the output
    tasks = options.per_node if options.launch == "srun" else 1
    command = [
        *("sbatch", "--parsable", f"--job-name={run.name}", f"--nodes={options.nodes}"),
        *(
            f"--ntasks-per-node={tasks}",
            f"--time={options.time}",
            f"--output={literal(logs)}/%j.out",
        ),
    ]
    command += [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    command += [*more, os.path.relpath(SCRIPT), str(options.config), *options.overrides]
    environment = {
        "LAUNCH": options.launch,
        "PER_NODE": str(options.per_node),
        "LOG_DIR": str(logs),
    }
    return command, SCRIPT.read_text(), environment


def misfits(
    ranks: int, *, global_batch_size: int, micro_batch_size: int | None, streams: int | None
) -> Iterator[str]:
    """What does not go into so many ranks, and the nearest that does.

    streams: None for a run that has begun, whose order stays as it is
    """
    if global_batch_size % ranks:
        yield (
            f"global_batch_size {global_batch_size} is not a multiple of {ranks} ranks; "
            f"the nearest that fits is {nearest(global_batch_size, ranks)}"
        )
    elif micro_batch_size and micro_batch_size < global_batch_size // ranks:
        unit = ranks * micro_batch_size
        if global_batch_size % unit:
            yield (
                f"global_batch_size {global_batch_size} is not a multiple of {ranks} ranks x "
                f"micro_batch_size {micro_batch_size}; "
                f"the nearest that fits is {nearest(global_batch_size, unit)}"
            )
    if streams and streams % ranks and ranks % streams:
        yield (
            f"data.streams {streams} and {ranks} ranks: each rank would read "
            f"{streams // gcd(streams, ranks)} streams, with shards that others read too; "
            f"the nearest that fits is {nearest(streams, ranks)}"
        )


def nearest(value: int, unit: int) -> int:
    """The multiple of `unit`, at least one of it, that is nearest to `value`."""
    return max(1, round(value / unit)) * unit


EVAL = """#!/bin/bash
checkpoints=({checkpoints})
folder={folder}
[ ! -d .venv ] || export PATH="$PWD/.venv/bin:$PATH"
checkpoint=${{checkpoints[$SLURM_ARRAY_TASK_ID]}}
results="$folder/$(basename "$checkpoint").jsonl"
srun python -m clipx eval "$checkpoint" --json >"$results.new" && mv "$results.new" "$results"
"""


def literal(path: Path) -> str:
    """A path as a part of sbatch's file patterns, in which % begins a variable."""
    return str(path).replace("%", "%%")


def eval_job(options: argparse.Namespace, more: Sequence[str]) -> Job:
    """An array with a job for each checkpoint that has no result yet. Raises UserError."""
    run: Path = options.eval
    folder = run / "evals"
    newest_first = list_checkpoints(run / "checkpoints")[::-1]
    every = newest_first[:: options.every][::-1]  # the last is among them
    left = [path for path in every if not (folder / f"{path.name}.jsonl").exists()]
    if not left:
        found = f"{len(every)} are all evaluated in {folder}" if every else "there are none"
        raise UserError(f"{run} has no checkpoint to evaluate: {found}")
    if not options.dry_run:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    command = [
        *("sbatch", "--parsable", f"--job-name={run.name}-eval", "--nodes=1", "--ntasks=1"),
        *(f"--time={options.time}", f"--array=0-{len(left) - 1}%{options.at_once}"),
        f"--output={literal(folder)}/logs/%A-%a.out",
    ]
    command += [f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []
    checkpoints = " ".join(shlex.quote(str(path)) for path in left)
    return (
        [*command, *more],
        EVAL.format(checkpoints=checkpoints, folder=shlex.quote(str(folder))),
        {},
    )


if __name__ == "__main__":
    main()
