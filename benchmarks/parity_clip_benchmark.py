"""`clipx eval` beside CLIP_benchmark itself: the same model, the same test sets, the same numbers.

    bash benchmarks/clip_benchmark_env.sh            # once: the peer in an environment of its own
    clipx data demo --preset quick --out data/demo   # once: the test sets
    python benchmarks/parity_clip_benchmark.py [--model RUN_OR_CHECKPOINT] [--check]

The model is a checkpoint of clipx, which is a folder that open_clip loads; without --model one is
trained for --steps on the demo corpus. The test sets are the demo's, in the webdataset layout of
CLIP_benchmark, and one more of the same pictures with one to three captions each. Both compute in
float32 on the CPU. Prints a table and one JSON line; --check fails where any two numbers differ by
more than 1e-6, which is less than one sample.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clipx.checkpoints.format import find_checkpoint

ROOT = Path(__file__).parents[1]
TASKS = {
    "zeroshot_classification": ("acc1", "acc5", "mean_per_class_recall"),
    "zeroshot_retrieval": ("image_retrieval_recall@5", "text_retrieval_recall@5"),
}
TOLERANCE = 1e-6
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

Numbers = dict[str, dict[str, float]]
"""Set -> metric, by CLIP_benchmark's name for it -> value."""


def main() -> None:
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = export_sets(arguments.data, folder / "sets")
        model = arguments.model or train(folder / "run", arguments.steps)
        exported = export_model(model, folder / "model")
        theirs: Numbers = {}
        for task in TASKS:
            chosen = [path for path in sets if task_of(path) == task]
            theirs |= clip_benchmark(arguments.env, exported, chosen, task, folder / "theirs")
        ours = clipx(model, sets, folder / "ours")
    worst = show(theirs, ours)
    print(json.dumps({"clip_benchmark": theirs, "clipx": ours, "largest_difference": worst}))
    if arguments.check and worst > TOLERANCE:
        sys.exit(f"largest difference {worst:.2e}, more than {TOLERANCE:.0e}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    top.add_argument("--model", type=Path, help="run or checkpoint folder (default: trained here)")
    top.add_argument("--steps", type=int, default=300, help="of the model that is trained here")
    top.add_argument("--data", type=Path, default=ROOT / "data/demo/eval", help="the test sets")
    top.add_argument("--env", type=Path, default=ROOT / ".venv-clip-benchmark")
    top.add_argument("--check", action="store_true", help="fail where two numbers differ")
    return top


def export_sets(source: Path, out: Path) -> list[Path]:
    """The demo's sets, each checked to have what CLIP_benchmark asks for, and one with several
    captions for each picture."""
    sets = []
    for path in sorted(p for p in source.iterdir() if (p / "test").is_dir()):
        shutil.copytree(path, out / path.name)
        shards = len(list((path / "test").glob("*.tar")))
        (out / path.name / "test/nshards.txt").write_text(str(shards))
        sets.append(out / path.name)
    if not sets:
        sys.exit(f"{source} has no test sets; build them by: clipx data demo")
    retrieval = [path for path in sets if task_of(path) == "zeroshot_retrieval"]
    return sets + [several_captions(path, out / f"{path.name}-several") for path in retrieval]


def task_of(path: Path) -> str:
    return "zeroshot_retrieval" if (path / "dataset_type.txt").exists() else next(iter(TASKS))


def several_captions(path: Path, out: Path) -> Path:
    """Picture n has its own caption and n % 3 more."""
    shutil.copytree(path, out)
    for shard in sorted((path / "test").glob("*.tar")):
        with tarfile.open(shard) as old, tarfile.open(out / "test" / shard.name, "w") as new:
            number = 0
            for member in old:
                content = old.extractfile(member)
                assert content is not None
                if member.name.endswith(".txt"):
                    caption = content.read().decode().strip()
                    more = (f"a drawing of {caption}", f"{caption}, on a plain ground")
                    text = "\n".join([caption, *more[: number % 3]])
                    (out / "caption.txt").write_text(text, encoding="utf-8")
                    new.add(out / "caption.txt", arcname=member.name)
                    number += 1
                else:
                    new.addfile(member, content)
    (out / "caption.txt").unlink()
    return out


def train(run: Path, steps: int) -> Path:
    """The demo's tiny model, from random weights."""
    changes = (
        f"run_dir={run}",
        f"duration={steps} steps",
        "evaluators={}",
        "optim.warmup=10 steps",
    )
    command = ["train", "configs/run/demo_tiny.yaml", *changes, "device=cpu"]
    subprocess.run([sys.executable, "-m", "clipx", *command], check=True, cwd=ROOT, env=ENVIRONMENT)
    return run


def export_model(model: Path, out: Path) -> Path:
    """What open_clip's `local-dir:` wants of a checkpoint."""
    checkpoint = find_checkpoint(model)
    out.mkdir(parents=True)
    shutil.copy(checkpoint / "open_clip_config.json", out)
    averages = checkpoint / "ema.safetensors"
    if averages.exists():
        sys.exit(f"{checkpoint} has averages of the weights: compare a run without ema")
    shutil.copy(checkpoint / "model.safetensors", out / "open_clip_model.safetensors")
    return out


def clip_benchmark(env: Path, model: Path, sets: Sequence[Path], task: str, out: Path) -> Numbers:
    command = env / "bin" / "clip_benchmark"
    if not command.exists():
        sys.exit(
            f"{command} does not exist; make it by: bash benchmarks/clip_benchmark_env.sh {env}"
        )
    out.mkdir(exist_ok=True)
    options = ["--model", f"local-dir:{model}", "--pretrained", "", "--task", task, "--no_amp"]
    options += ["--dataset", *(f"wds/{path.name}" for path in sets), "--quiet"]
    options += ["--dataset_root", f"{sets[0].parent}/{{dataset}}", "--num_workers", "0"]
    options += ["--output", f"{out}/{{dataset}}.json"]
    subprocess.run(
        [command, "eval", *options],
        check=True,
        cwd=out,
        env={k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"},
    )
    return {path.name: read(out / f"{path.name}.json", task) for path in sets}


def clipx(model: Path, sets: Sequence[Path], out: Path) -> Numbers:
    options = [word for path in sets for word in ("--set", path)]
    command = ["eval", model, *options, "--precision", "fp32", "--out", out]
    subprocess.run([sys.executable, "-m", "clipx", *command], check=True, cwd=ROOT, env=ENVIRONMENT)
    found = out / "clip_benchmark"
    return {p.name: read(found / f"{p.name}_{task_of(p)}.json", task_of(p)) for p in sets}


def read(file: Path, task: str) -> dict[str, float]:
    metrics = json.loads(file.read_text())["metrics"]
    return {name: metrics[name] for name in TASKS[task]}


def show(theirs: Numbers, ours: Numbers) -> float:
    """Print all numbers of both; returns the largest difference."""
    table = Table("set", "metric", "CLIP_benchmark", "clipx", "difference")
    differences = []
    for name, metrics in theirs.items():
        for metric, value in metrics.items():
            other = ours[name][metric]
            differences.append(abs(value - other))
            table.add_row(name, metric, f"{value:.8f}", f"{other:.8f}", f"{differences[-1]:.1e}")
        table.add_section()
    Console(highlight=False, width=120).print(table)
    return max(differences)


if __name__ == "__main__":
    main()
