"""Training step of clipx beside open_clip 3.3.0's own, of the demo model and of ViT-B-32: samples
per second, and the losses.

    bash benchmarks/peer_env.sh                      # once: the peer in an environment of its own
    clipx data demo --preset quick --out data/demo   # once: the corpus
    python benchmarks/step.py [--check] [--model demo] [--no-compile] [--rounds 3] [--device cuda]

Same initial weights, same batches, same threads, same optimizer. The contestants take turns in
short bursts, so a machine whose speed drifts slows both; figures are medians. The peer runs with
every setting that its flags offer, at its JSON's 77 tokens and, for the demo model, cut to 16 by
hand; its two precisions run in heats of their own, because what all settings hold at once would not
fit this memory. clipx reads the same captions whole, and is not compiled on CPUs. The bars are for
the peer's fastest setting by its own flags. Rows with math attention, which no flag of the peer's
sets, are reported apart. In float32 both run on until 20 steps are done, whose losses must agree.
Compiling takes minutes, which are not counted. Run nothing beside it: five processes of ViT-B-32
hold 20 GB.

On a GPU clipx is compiled too; ViT-B-32 has captions as long as the web's there, or, as `ViT-B-32,
full`, such as fill all 77 tokens, where both do the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    """bars: least ratio to the peer at so many tokens
    captions: the demo's; random ones as long as those of the web (log-normal, median 16 tokens, a
        few of 77); or all as long as the context
    """

    json: str
    batch_size: int
    bars: dict[int, float]
    compare_losses: bool = False
    captions: Literal["demo", "web", "full"] = "demo"


DEMO = "configs/model/demo_tiny.json"
MODELS = {
    "cpu": {
        "demo": Model(DEMO, 512, {16: 2.5, 77: 5.0}, compare_losses=True),
        "ViT-B-32": Model("ViT-B-32", 32, {77: 1.5}),
    },
    "cuda": {
        # So small that both wait for the host to launch kernels.
        "demo": Model(DEMO, 2048, {77: 0.9}, compare_losses=True),
        "ViT-B-32": Model("ViT-B-32", 512, {77: 1.0}, captions="web"),
        "ViT-B-32, full": Model("ViT-B-32", 512, {77: 1.0}, captions="full"),
    },
}
SHARDS = "data/demo/train"


@dataclass(frozen=True)
class Setting:
    """peer_python: interpreter of the peer's environment; compiled: the compiled ones run too"""

    device: str
    peer_python: str
    threads: int
    compiled: bool
    rounds: int
    burst: int


def contestants(tokens: int, precision: str, folder: Path, setting: Setting) -> list[Contestant]:
    """Of one heat: clipx, and the peer at so many tokens in this precision."""
    gpu, fp32 = setting.device == "cuda", precision == "fp32"
    shared = ["--model-json", str(folder / "model.json"), "--batch", str(folder / "batch.npz")]
    shared += ["--device", setting.device]
    ours = [sys.executable, str(HERE / "clipx_step.py"), *shared]
    ours += ["--init", str(folder / "clipx.safetensors")]
    peer = [setting.peer_python, str(HERE / "peer_step.py"), *shared, "--serve"]
    peer += ["--init", str(folder / "peer.safetensors"), "--threads", str(setting.threads)]
    peer += ["--context-length", str(tokens), "--precision", precision]
    # In float32 both kinds of attention are equally fast; on GPUs nobody wants the slow one.
    kinds = ("default",) if fp32 or gpu else ("default", "math")
    extras: tuple[list[str], ...] = ([], ["--compile"]) if setting.compiled else ([],)
    out = [
        Contestant(" ".join(["clipx", p, *extra]), [*ours, "--precision", p, *extra])
        for p in ("bf16", "fp32")[: 1 + fp32]
        for extra in extras[: 1 + (gpu and p == "bf16")]
    ]
    for attention in kinds:
        for extra in extras:
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
    image, text = (np.stack([b.views[name].numpy() for b in loaded]) for name in ("image", "text"))
    if model.captions != "demo":
        text = random_captions(model.captions, text.shape, end=int(text.max()))
    np.savez(folder / "batch.npz", image=image, text=text)


def random_captions(lengths: str, shape: tuple[int, ...], *, end: int) -> np.ndarray:
    """(S, B, T) ids that end at different places, or all at the last."""
    random = np.random.default_rng(0)
    text, place = random.integers(1, end - 1, shape), np.arange(shape[-1])
    last = np.full(shape[:-1], shape[-1] - 1)
    if lengths == "web":
        last = np.minimum(random.lognormal(np.log(16), 0.55, shape[:-1]).astype(int), last)
        last[:, 0] = shape[-1] - 1
    text[place > last[..., None]] = 0
    np.put_along_axis(text, last[..., None], end, axis=-1)
    return text


def race(model: Model, tokens: int, precision: str, setting: Setting) -> list[Contestant]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(model, folder)
        racers = contestants(tokens, precision, folder, setting)
        for one in racers:
            one.start()
            if setting.device == "cpu":  # whose cores would be fought over
                one.wait_until_warm()
        if setting.device == "cuda":
            for one in racers:
                one.wait_until_warm()
        for _ in range(setting.rounds):
            for one in racers:
                one.burst(setting.burst)
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
    parser.add_argument("--device", choices=[*MODELS], default="cpu")
    parser.add_argument("--model", choices=[*MODELS["cuda"], "all"], default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst", type=int, default=4, help="steps of each contestant in a round")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled ones out")
    parser.add_argument("--peer-python", default=".venv-peer/bin/python")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    models = MODELS[arguments.device]
    if arguments.model not in (*models, "all"):
        parser.error(f"--model {arguments.model!r} is run with --device cuda only")
    if shutil.which(arguments.peer_python) is None:
        sys.exit("the peer's environment is missing; make it with: bash benchmarks/peer_env.sh")
    if not Path(SHARDS).is_dir():
        sys.exit(f"{SHARDS} is missing; make it with: clipx data demo")

    threads = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    setting = Setting(
        arguments.device,
        arguments.peer_python,
        threads,
        not arguments.no_compile,
        arguments.rounds,
        arguments.burst,
    )
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    figures: dict[str, Any] = {"threads": threads, "gpu": gpu}
    missed: list[str] = []
    for name in models if arguments.model == "all" else [arguments.model]:
        model, found = models[name], figures.setdefault(name, {})
        for tokens, bar in model.bars.items():
            heats = []
            for precision in precisions(model, setting):
                racers = race(model, tokens, precision, setting)
                show(name, model, racers, gpu or f"{threads} threads")
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


def precisions(model: Model, setting: Setting) -> tuple[str, ...]:
    """Nobody trains in float32 on a GPU: there it runs for its losses."""
    both = setting.device == "cpu" or model.compare_losses
    return ("amp_bf16", "fp32") if both else ("amp_bf16",)


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


def show(name: str, model: Model, racers: list[Contestant], machine: str) -> None:
    fastest = min(c.median for c in racers if c.tokens is None)
    title = f"training step, {name}, batch {model.batch_size}, {machine}"
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
