"""Training step of clipx beside open_clip 3.3.0's own, of the demo model and of ViT-B-32: samples
per second, and the losses.

    bash benchmarks/peer_env.sh                      # once: the peer in an environment of its own
    clipx data demo --preset quick --out data/demo   # once: the corpus
    python benchmarks/step.py [--check] [--model demo] [--no-compile] [--rounds 3]

Same initial weights, same batches, same threads, same optimizer. The contestants take turns in
short bursts, so a machine whose speed drifts slows both; figures are medians. The peer runs with
every setting that its flags offer, at its JSON's 77 tokens and, for the demo model, cut to 16 by
hand; its two precisions run in heats of their own, because what all settings hold at once would not
fit this memory. clipx reads the same captions whole, and is not compiled. The bars are for the
peer's fastest setting by its own flags. Rows with math attention, which no flag of the peer's sets,
are reported apart. In float32 both run on until 20 steps are done, whose losses must agree.
Compiling takes the peer minutes, which are not counted. Run nothing beside it: five processes of
ViT-B-32 hold 20 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from step_contestant import Contestant

from clipx.data.config import DataConfig
from clipx.data.loader import Batches
from clipx.data.tokenizers import build_tokenizer
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.model_json import image_size
from clipx.types import UserError

HERE = Path(__file__).parent
COMPARED_STEPS, AGREEMENT = 20, 1e-3
WHOLE = 77  # tokens: no caption is cut


@dataclass(frozen=True)
class Model:
    """bars: least ratio to the peer at so many tokens"""

    json: str
    batch_size: int
    bars: dict[int, float]
    compare_losses: bool


MODELS = {
    "demo": Model("configs/model/demo_tiny.json", 512, {16: 2.5, 77: 5.0}, compare_losses=True),
    "ViT-B-32": Model("ViT-B-32", 32, {77: 1.5}, compare_losses=False),
}
SHARDS = "data/demo/train"


def contestants(
    tokens: int, precision: str, folder: Path, threads: int, *, compiled: bool
) -> list[Contestant]:
    """Of one heat: clipx, and the peer at so many tokens in this precision."""
    shared = ["--model-json", str(folder / "model.json"), "--batch", str(folder / "batch.npz")]
    ours = [sys.executable, str(HERE / "clipx_step.py"), *shared]
    ours += ["--init", str(folder / "clipx.safetensors")]
    peer = [".venv-peer/bin/python", str(HERE / "peer_step.py"), *shared, "--serve"]
    peer += ["--init", str(folder / "peer.safetensors"), "--threads", str(threads)]
    peer += ["--context-length", str(tokens), "--precision", precision]
    fp32 = precision == "fp32"
    # In float32 both kinds of attention are equally fast.
    kinds = ("default",) if fp32 else ("default", "math")
    out = [
        Contestant(f"clipx {p}", [*ours, "--precision", p]) for p in ("bf16", "fp32")[: 1 + fp32]
    ]
    for attention in kinds:
        for extra in ([], ["--compile"]) if compiled else ([],):
            name = " ".join(["peer", precision, f"{attention} attention", *extra])
            command = [*peer, "--attention", attention, *extra]
            out.append(Contestant(name, command, tokens, by_flags=attention == "default"))
    return out


def write_inputs(model: Model, folder: Path, num_batches: int = 4) -> None:
    """The same initial weights and batches for both: demo images, and captions padded to 77
    tokens."""
    cfg = ModelConfig(model.json).read()
    (folder / "model.json").write_text(json.dumps(cfg))
    torch.manual_seed(0)
    weights = {k: v.contiguous() for k, v in DualEncoder(cfg).state_dict().items()}
    save_file(weights, folder / "clipx.safetensors")
    # open_clip's CLIP class keeps its text tower's parameters at the top.
    peer_names = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    save_file(peer_names, folder / "peer.safetensors")
    data = DataConfig(shards=SHARDS)
    batches = Batches(
        data,
        data.open(seed=0),
        build_tokenizer(cfg["text_cfg"]),
        image_size=image_size(cfg),
        context_length=77,
        pad_to=77,
        global_batch_size=model.batch_size,
        rank=0,
        world_size=1,
    )
    loaded = [batches[k] for k in range(num_batches)]
    assert not any(isinstance(b, UserError) for b in loaded)
    image, text = (
        np.stack([getattr(b, name).numpy() for b in loaded]) for name in ("image", "text")
    )
    np.savez(folder / "batch.npz", image=image, text=text)


def race(
    model: Model,
    tokens: int,
    precision: str,
    rounds: int,
    burst: int,
    threads: int,
    *,
    compiled: bool,
) -> list[Contestant]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(model, folder)
        racers = contestants(tokens, precision, folder, threads, compiled=compiled)
        for one in racers:
            one.start()
        for _ in range(rounds):
            for one in racers:
                one.burst(burst)
        if model.compare_losses and is_compared(tokens, precision):
            for one in compared(racers):
                one.burst(max(1, COMPARED_STEPS - len(one.losses)))
        for one in racers:
            one.stop()
    return racers


def is_compared(tokens: int, precision: str) -> bool:
    """Whether the heat has both in float32, with whole captions."""
    return tokens == WHOLE and precision == "fp32"


def compared(racers: list[Contestant]) -> tuple[Contestant, Contestant]:
    peer = next(c for c in racers if c.name.startswith("peer fp32"))
    return next(c for c in racers if c.name == "clipx fp32"), peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst", type=int, default=4, help="steps of each contestant in a round")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled peer out")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    if not Path(".venv-peer/bin/python").exists():
        sys.exit("the peer's environment is missing; make it with: bash benchmarks/peer_env.sh")
    if not Path(SHARDS).is_dir():
        sys.exit(f"{SHARDS} is missing; make it with: clipx data demo")

    threads = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    figures: dict[str, Any] = {"threads": threads}
    missed: list[str] = []
    for name in MODELS if arguments.model == "all" else [arguments.model]:
        model, found = MODELS[name], figures.setdefault(name, {})
        for tokens, bar in model.bars.items():
            heats = []
            for precision in ("amp_bf16", "fp32"):
                racers = race(
                    model,
                    tokens,
                    precision,
                    arguments.rounds,
                    arguments.burst,
                    threads,
                    compiled=not arguments.no_compile,
                )
                show(name, model, racers, threads)
                heats.append(racers)
                if model.compare_losses and is_compared(tokens, precision):
                    found["largest difference of losses"] = largest_difference(racers)
            key = f"clipx over peer at {tokens} tokens"
            found[key] = ratio(heats, by_flags=True)
            found[f"{key}, math attention allowed"] = ratio(heats, by_flags=False)
            if found[key] < bar:
                missed.append(f"{name}: {bar}x at {tokens} tokens")
        if found.get("largest difference of losses", 0) > AGREEMENT:
            missed.append(f"{name}: losses agree to {AGREEMENT}")
    print(json.dumps(figures))
    if arguments.check and missed:
        sys.exit(f"missed: {missed}")


def ratio(heats: list[list[Contestant]], *, by_flags: bool) -> float:
    """How much faster clipx's best setting is than the peer's best, within the heat of that one."""
    out = []
    for racers in heats:
        ours = min(c.median for c in racers if c.tokens is None)
        peers = [c for c in racers if c.tokens is not None and (c.by_flags or not by_flags)]
        out.append(min(c.median for c in peers) / ours)
    return round(min(out), 3)


def largest_difference(racers: list[Contestant]) -> float:
    """Of the losses of the first steps in float32."""
    pairs = list(zip(*(c.losses[:COMPARED_STEPS] for c in compared(racers)), strict=True))
    assert len(pairs) == COMPARED_STEPS
    return round(max(abs(a - b) for a, b in pairs), 6)


def show(name: str, model: Model, racers: list[Contestant], threads: int) -> None:
    fastest = min(c.median for c in racers if c.tokens is None)
    title = f"training step, {name}, batch {model.batch_size}, {threads} threads"
    columns = ("contestant", "tokens", "samples/s", "clipx is faster by", "first, last loss")
    table = Table(*columns, title=title)
    for c in racers:
        seen = str(c.tokens or "as long as they are")
        losses = f"{c.losses[0]:.4f}, {c.losses[-1]:.4f}"
        rate = f"{model.batch_size / c.median:.1f}"
        table.add_row(c.name, seen, rate, f"{c.median / fastest:.2f}x", losses)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
