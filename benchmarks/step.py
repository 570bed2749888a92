"""Training step of clipx beside open_clip 3.3.0's own, on the demo model and corpus: samples per
second, and the losses.

    bash benchmarks/peer_env.sh                      # once: the peer in an environment of its own
    clipx data demo --preset quick --out data/demo   # once: the corpus
    python benchmarks/step.py [--check] [--rounds 5] [--compile]

Same initial weights, same batches, same threads, same optimizer. The contestants take turns in
short bursts, so a machine whose speed drifts slows both; figures are medians. The peer runs with
every setting that its flags offer (and with math attention, which they do not), at its JSON's 77
tokens and cut to 16 by hand; clipx reads the same captions whole. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from clipx.data.config import DataConfig
from clipx.data.loader import Batches
from clipx.data.tokenizers import build_tokenizer
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.types import UserError

HERE = Path(__file__).parent
MODEL = "configs/model/demo_tiny.json"
BARS = {"peer at 16 tokens": 2.5, "peer at 77 tokens": 5.0}


@dataclass(eq=False)
class Contestant:
    name: str
    command: list[str]
    tokens: int | None = None  # None: as many as the longest caption of the batch
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.losses += self._answer()["losses"]

    def burst(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        # The first step of a burst warms the caches that the other contestant has filled.
        self.seconds += answer["step_seconds"][1:]
        self.losses += answer["losses"]

    def stop(self) -> None:
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended:\n{self.process.communicate()[1][-2000:]}")


def contestants(folder: Path, threads: int, *, compiled: bool) -> list[Contestant]:
    shared = ["--model-json", MODEL, "--batch", str(folder / "batch.npz")]
    ours = [sys.executable, str(HERE / "clipx_step.py"), *shared]
    ours += ["--init", str(folder / "clipx.safetensors")]
    peer = [".venv-peer/bin/python", str(HERE / "peer_step.py"), *shared, "--serve"]
    peer += ["--init", str(folder / "peer.safetensors")]
    peer += ["--threads", str(threads)]
    out = [Contestant(f"clipx {p}", [*ours, "--precision", p]) for p in ("bf16", "fp32")]
    for tokens in (77, 16):
        for precision in ("amp_bf16", "fp32"):
            # In float32 both kinds of attention are equally fast.
            for attention in ("default", "math") if precision == "amp_bf16" else ("default",):
                for extra in ([], ["--compile"]) if compiled else ([],):
                    name = " ".join(["peer", precision, f"{attention} attention", *extra])
                    command = [*peer, "--context-length", str(tokens), "--precision", precision]
                    command += ["--attention", attention, *extra]
                    out.append(Contestant(name, command, tokens))
    return out


def write_inputs(folder: Path, batch_size: int, num_batches: int = 4) -> None:
    """The same initial weights and batches for both: demo images, and captions padded to 77
    tokens."""
    cfg = ModelConfig(MODEL).read()
    torch.manual_seed(0)
    weights = {k: v.contiguous() for k, v in DualEncoder(cfg).state_dict().items()}
    save_file(weights, folder / "clipx.safetensors")
    # open_clip's CLIP class keeps its text tower's parameters at the top.
    peer_names = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    save_file(peer_names, folder / "peer.safetensors")
    data = DataConfig(shards="data/demo/train")
    batches = Batches(
        data,
        data.open(seed=0),
        build_tokenizer(cfg["text_cfg"]),
        image_size=64,
        context_length=77,
        pad_to=77,
        global_batch_size=batch_size,
        rank=0,
        world_size=1,
    )
    loaded = [batches[k] for k in range(num_batches)]
    assert not any(isinstance(b, UserError) for b in loaded)
    image, text = (
        np.stack([getattr(b, name).numpy() for b in loaded]) for name in ("image", "text")
    )
    np.savez(folder / "batch.npz", image=image, text=text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burst", type=int, default=4, help="steps of each contestant in a round")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument(
        "--compile", action="store_true", help="also the peer compiled (minutes more)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    if not Path(".venv-peer/bin/python").exists():
        sys.exit("the peer's environment is missing; make it with: bash benchmarks/peer_env.sh")

    threads = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.batch_size)
        all_contestants = contestants(folder, threads, compiled=arguments.compile)
        for one in all_contestants:
            one.start()
        for _ in range(arguments.rounds):
            for one in all_contestants:
                one.burst(arguments.burst)
        for one in all_contestants:
            one.stop()
    figures = report(all_contestants, arguments.batch_size, threads)
    print(json.dumps(figures))
    missed = [bar for bar, least in BARS.items() if figures[f"clipx over {bar}"] < least]
    if arguments.check and missed:
        sys.exit(f"missed: {missed}")


def report(all_contestants: list[Contestant], batch_size: int, threads: int) -> dict[str, Any]:
    rate = {c: batch_size / statistics.median(c.seconds) for c in all_contestants}
    best = {
        t: max((c for c in all_contestants if c.tokens == t), key=rate.__getitem__)
        for t in (None, 77, 16)
    }
    title = f"training step, {MODEL}, batch {batch_size}, {threads} threads"
    columns = ("contestant", "tokens", "samples/s", "clipx is faster by", "first, last loss")
    table = Table(*columns, title=title)
    for c in all_contestants:
        tokens = str(c.tokens or "as long as they are")
        losses = f"{c.losses[0]:.4f}, {c.losses[-1]:.4f}"
        table.add_row(
            c.name, tokens, f"{rate[c]:.0f}", f"{rate[best[None]] / rate[c]:.2f}x", losses
        )
    Console(width=120).print(table)
    return {
        "clipx samples/s": round(rate[best[None]], 1),
        **{f"peer at {t} tokens samples/s": round(rate[best[t]], 1) for t in (77, 16)},
        **{
            f"clipx over peer at {t} tokens": round(rate[best[None]] / rate[best[t]], 3)
            for t in (77, 16)
        },
        "threads": threads,
        "batch_size": batch_size,
    }


if __name__ == "__main__":
    main()
