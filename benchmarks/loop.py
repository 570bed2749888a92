"""The training loop beside its steps alone: how much of the step's speed does `clipx train` reach?

    python benchmarks/loop.py [--check] [--config configs/run/demo_tiny.yaml] [--rounds 6]

Both run in one process, on the same model, in turns: some steps of the loop, with reading,
decoding, augmenting and tokenizing their batches, then the same batches again through the step
alone. The first epoch comes before, so that `data.decoded_cache` is filled, as it is for all but
the first of the quickstart's nine. Needs the demo corpus (`clipx data demo`) and an idle machine;
takes about 5 minutes on 2 cores."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clipx.config import load as load_config
from clipx.data.loader import load
from clipx.training.config import TrainConfig
from clipx.training.logging import Throughput
from clipx.training.session import Session

SHARE_BAR, WAIT_BAR = 0.95, 0.05


def measure(session: Session, *, first_step: int, steps: int) -> tuple[float, float, float]:
    """(loop samples/s, step samples/s, the loop's share of time spent waiting for data)"""
    size = session.config.global_batch_size
    throughput = Throughput()
    batches = []
    for batch in throughput.timed(load(session.source, first_step, first_step + steps)):
        session.advance(batch)
        throughput.add(size)
        batches.append(batch)
    record = throughput.read()
    start = time.perf_counter()
    for batch in batches:
        session.step(batch, False, False)
    alone = steps * size / (time.perf_counter() - start)
    return record["train/samples_per_second"], alone, record["data_wait_fraction"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--config", type=Path, default=Path("configs/run/demo_tiny.yaml"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=15, help="of the loop in each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run_dir={folder}/run", "evaluators={}"]
        session = Session(load_config(TrainConfig, arguments.config, overrides))
        size = session.config.global_batch_size
        epoch = -(-session.corpus.num_samples // size)
        if session.config.data.decoded_cache is not None:
            for _ in load(session.source, 0, epoch):
                pass
        rounds = []
        for number in range(arguments.rounds + 1):
            first = epoch + number * arguments.steps
            rounds.append(measure(session, first_step=first, steps=arguments.steps))
        session.close("stopped", "benchmark")
    loop, alone, wait = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    table = Table("", "samples/s", title=f"{arguments.config}, {arguments.rounds} rounds in turns")
    table.add_row("step alone", f"{alone:,.0f}")
    table.add_row("loop", f"{loop:,.0f}")
    table.add_row("loop / step", f"{loop / alone:.1%}")
    table.add_row("data wait", f"{wait:.1%}")
    Console().print(table)
    figures = {
        "loop samples/s": round(loop),
        "step samples/s": round(alone),
        "loop / step": round(loop / alone, 3),
        "data wait": round(wait, 3),
    }
    print(json.dumps(figures))
    if arguments.check and (loop / alone < SHARE_BAR or wait > WAIT_BAR):
        sys.exit("missed: the loop's share of the step's speed, or its wait for data")


if __name__ == "__main__":
    main()
