"""clipx's losses beside open_clip's: time and peak memory of 1,024 local rows against N columns,
the bytes that pools send, and the peak memory of every loss.

    python benchmarks/loss.py [--check] [--quick] [--memory] [--device cuda]

InfoNCE runs beside `open_clip.ClipLoss` (local_loss, gather_with_grad), the sigmoid loss beside
the fastest way of `open_clip.loss.SigLipLoss`; float32, D = 512, forward and backward. One process
plays rank 0 of N / 1,024: benchmarks/loss_contestants.py says exactly what is emulated. The two
take turns, and figures are medians. Peak memory is that of processes of their own, beyond the
inputs and their gradients. Bytes are counted on real ranks. Run nothing beside it; it takes about
4 minutes.

--memory prints the peak memory of every loss alone, beside that of the same loss in plain PyTorch
(benchmarks/loss_dense.py); it takes 5 to 15 minutes, may run beside other work, and needs 6 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss_bytes import KINDS, formula, measured
from loss_bytes import LOCAL_ROWS as BYTES_ROWS
from loss_contestants import LOCAL_ROWS, MIB, Contestant, unit_rows
from loss_dense import DENSE
from loss_peaks import difference
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table

from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE

VARIANTS = ("bidir", "shift", "gather")
COLUMNS = (4096, 8192, 16384, 32768, 65536)
QUICK = (4096, 16384)
TIME_BAR, MEMORY_BAR = 1.0, 1 / 8
SECONDS = 6.0  # for each pair and N, but at least 3 turns and at most 15


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turns(runs: list[Callable[[], Any]]) -> list[float]:
    """Median seconds of each, which take turns."""
    once = sum(seconds(run) for run in runs)  # warms up
    turns = min(15, max(3, int(SECONDS / once)))
    taken = [[seconds(run) for run in runs] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def best_variant(device: str) -> str:
    names = [f"SigLipLoss {variant}" for variant in VARIANTS]
    taken = in_turns([Contestant(name, COLUMNS[0], device).run for name in names])
    return names[taken.index(min(taken))]


def peaks(name: str, columns: tuple[int, ...], device: str) -> dict[str, int]:
    """Bytes by N. Blocks of 64 KiB and more go back to the system when they are freed, so that a
    large N is not measured in what a small one has left."""
    script = str(Path(__file__).with_name("loss_contestants.py"))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    command = [sys.executable, script, name, *map(str, columns), "--device", device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(pairs: list[tuple[str, str]], columns: tuple[int, ...], device: str) -> dict[str, Any]:
    table = Table("loss", "N", "s", "peer s", "time ratio", "MiB", "peer MiB", "memory ratio")
    figures: dict[str, Any] = {}
    for ours, theirs in pairs:
        memory = {name: peaks(name, columns, device) for name in (ours, theirs)}
        for n in columns:
            mine, peer = in_turns([Contestant(name, n, device).run for name in (ours, theirs)])
            held, peer_held = (memory[name][str(n)] for name in (ours, theirs))
            table.add_row(
                f"{ours} / {theirs}",
                f"{n:,}",
                f"{mine:.4f}",
                f"{peer:.4f}",
                f"{mine / peer:.2f}x",
                f"{held / MIB:.0f}",
                f"{peer_held / MIB:.0f}",
                f"1/{peer_held / max(held, 1):.0f}",
            )
            key = f"{ours} N={n}"
            figures[f"{key} time ratio"] = round(mine / peer, 3)
            figures[f"{key} memory ratio"] = round(held / peer_held, 4)
    table.title = f"{LOCAL_ROWS:,} local rows, float32, {machine(device)}"
    Console(width=140).print(table)
    return figures


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads"


def one_process(sizes: tuple[int, ...], device: str) -> dict[str, float]:
    """All rows here: ClipLoss without a gather, which is the plain code."""
    table = Table("B = N", "clipx ms", "ClipLoss ms", "time ratio", title="one process, InfoNCE")
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    figures = {}
    for size in sizes:
        rows = [unit_rows(size, seed, device).requires_grad_() for seed in (0, 1)]
        scale = torch.tensor(2.659, device=device, requires_grad=True)
        ours, theirs, pool = InfoNCE(), ClipLoss(), LocalPool()

        def mine(rows=rows, scale=scale, ours=ours, pool=pool) -> None:
            ours(*rows, logit_scale=scale, pool=pool).loss.backward()
            finish()

        def peer(rows=rows, scale=scale, theirs=theirs) -> None:
            theirs(*rows, scale.exp()).backward()
            finish()

        taken, plain = in_turns([mine, peer])
        ratio = taken / plain
        table.add_row(f"{size:,}", f"{1e3 * taken:.1f}", f"{1e3 * plain:.1f}", f"{ratio:.2f}x")
        figures[f"one process B={size} time ratio"] = round(ratio, 3)
    Console(width=140).print(table)
    return figures


def memory_of_each(columns: int, device: str) -> dict[str, Any]:
    """Peak memory of every loss, by figures' names."""
    table = Table("loss", "clipx MiB", "dense MiB", "memory ratio", "value differs by")
    figures: dict[str, Any] = {}
    script = str(Path(__file__).with_name("loss_peaks.py"))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    for name in DENSE:
        held = {}
        for side in ("clipx", "dense"):
            command = [sys.executable, script, name, side, str(columns), "--device", device]
            done = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            held[side] = json.loads(done.stdout.splitlines()[-1])["bytes"]
        ratio = held["clipx"] / held["dense"]
        table.add_row(
            name,
            f"{held['clipx'] / MIB:,.0f}",
            f"{held['dense'] / MIB:,.0f}",
            f"1/{1 / ratio:.0f}",
            f"{difference(name, device):.0e}",
        )
        figures[f"{name} dense N={columns} memory ratio"] = round(ratio, 4)
    table.title = f"{LOCAL_ROWS:,} local rows, {columns:,} columns, D = 512, float32, peak memory"
    Console(width=140).print(table)
    return figures


def exchanged(world_sizes: tuple[int, ...]) -> dict[str, Any]:
    table = Table("loss", "pool", "ranks", "KiB sent by a rank", "by formula", "off the peer's by")
    figures: dict[str, Any] = {}
    for size in world_sizes:
        found = measured(size)
        for loss in ("infonce", "sigmoid"):
            for kind in KINDS:
                sent, off = found[f"{loss} {kind}"]
                expected = formula(loss, kind, size)
                shown = (f"{sent / 1024:,.1f}", f"{expected / 1024:,.1f}", f"{off:.0e}")
                table.add_row(loss, kind, str(size), *shown)
                figures[f"{loss} {kind} {size} ranks bytes"] = sent
                figures[f"{loss} {kind} {size} ranks by formula"] = expected
    table.title = f"a step of {BYTES_ROWS} rows on each rank, D = 512, forward and backward"
    Console(width=140).print(table)
    return figures


def missed(figures: dict[str, Any], largest: int) -> list[str]:
    out = [k for k, v in figures.items() if k.endswith("time ratio") and v > TIME_BAR]
    out += [
        k for k, v in figures.items() if k.endswith(f"N={largest} memory ratio") and v > MEMORY_BAR
    ]
    return out + [
        k
        for k, v in figures.items()
        if k.endswith("bytes") and v != figures[k.replace("bytes", "by formula")]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="N up to 16,384 and 2 ranks only")
    parser.add_argument("--memory", action="store_true", help="the peak memory of every loss alone")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torch.distributed.nn.*")
    columns, device = QUICK if arguments.quick else COLUMNS, arguments.device
    if arguments.memory:
        finish(memory_of_each(columns[-1], device), columns[-1], check=arguments.check)
        return
    figures = exchanged((2,) if arguments.quick else (2, 4)) if device == "cpu" else {}
    figures |= one_process((512,) if arguments.quick else (512, 2048, 8192), device)
    pairs = [("clipx infonce", "ClipLoss"), ("clipx sigmoid", best_variant(device))]
    figures |= compare(pairs, columns, device)
    finish(figures, columns[-1], check=arguments.check)


def finish(figures: dict[str, Any], largest: int, *, check: bool) -> None:
    print(json.dumps(figures))
    faults = missed(figures, largest)
    if check and faults:
        sys.exit(f"missed: {faults}")


if __name__ == "__main__":
    main()
