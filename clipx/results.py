"""What an evaluation leaves in a folder, for people, for other programs, and for `clipx compare`.

results.jsonl          one line per set and metric, with its 95 % interval
clip_benchmark/        one JSON per set, as CLIP_benchmark writes them
samples/<set>.npz      one value a sample: `keys`, and an array for each metric that is a mean, with
                       `weights/<metric>` beside it where it is a weighted mean
tables/<set>.json      per-class recall, confusions and the like
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipx import strict_json
from clipx.types import Result, UserError

WEIGHTS = "weights/"
_KS = (1, 5, 10)
# Our metric -> CLIP_benchmark's, by its task. There an image is what is retrieved by a text.
CLIP_BENCHMARK = {
    "zeroshot_classification": {
        "zeroshot-top1": "acc1",
        "zeroshot-top5": "acc5",
        "zeroshot-mean_per_class_recall": "mean_per_class_recall",
    },
    "zeroshot_retrieval": {f"text_to_image_R@{k}": f"image_retrieval_recall@{k}" for k in _KS}
    | {f"image_to_text_R@{k}": f"text_retrieval_recall@{k}" for k in _KS},
    "linear_probe": {
        "probe-top1": "lp_acc1",
        "probe-top5": "lp_acc5",
        "probe-mean_per_class_recall": "lp_mean_per_class_recall",
    },
}


def check_out(folder: Path) -> None:
    """Before an evaluation, that its results may be written to `folder`. Raises UserError."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; give the name of a folder")
    if is_run(folder):
        raise UserError(
            f"--out {folder} is the folder of a run, whose own results.jsonl would be "
            f"overwritten; give another folder, for example --out {folder / 'evaluations'}"
        )
    if (folder / "manifest.json").exists():
        raise UserError(f"--out {folder} is a checkpoint, in which nothing else is written")


def is_run(folder: Path) -> bool:
    own = ("config.yaml", "status.json", "metrics.jsonl", "checkpoints")
    return any((folder / name).exists() for name in own)


def write_results(folder: Path, model: str, results: Mapping[str, Result]) -> None:
    """Raises OSError."""
    for name in ("samples", "tables", "clip_benchmark"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with (folder / "results.jsonl").open("w", encoding="utf-8") as file:
        for name, result in results.items():
            for line in lines_of(model, name, result):
                file.write(strict_json.dumps(line) + "\n")
    for name, result in results.items():
        arrays: dict[str, Any] = {
            metric: values.numpy() for metric, values in result.samples.items()
        }
        arrays |= {WEIGHTS + metric: weights.numpy() for metric, weights in result.weights.items()}
        arrays["keys"] = np.array(result.keys, dtype=str)
        file: Any = folder / "samples" / f"{name}.npz"
        np.savez_compressed(file, **arrays)
        (folder / "tables" / f"{name}.json").write_text(strict_json.dumps(result.tables, indent=1))
        for task, record in clip_benchmark_records(model, name, result).items():
            text = strict_json.dumps(record, indent=1)
            (folder / "clip_benchmark" / f"{name}_{task}.json").write_text(text)


def lines_of(model: str, name: str, result: Result) -> list[dict[str, Any]]:
    """One record for each metric."""
    return [
        {
            "model": model,
            "set": name,
            "metric": metric,
            "value": value,
            "low": result.intervals[metric][0] if metric in result.intervals else None,
            "high": result.intervals[metric][1] if metric in result.intervals else None,
            "num_samples": int(result.metrics["num_samples"]),
        }
        for metric, value in result.metrics.items()
        if metric != "num_samples"
    ]


def clip_benchmark_records(model: str, name: str, result: Result) -> dict[str, dict[str, Any]]:
    """By task, for what CLIP_benchmark has."""
    out = {}
    for task, names in CLIP_BENCHMARK.items():
        metrics = {
            theirs: result.metrics[ours] for ours, theirs in names.items() if ours in result.metrics
        }
        if metrics:
            out[task] = {
                "dataset": name,
                "model": model,
                "pretrained": model,
                "task": task,
                "metrics": metrics,
                "language": "en",
            }
    return out


def read_samples(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Set -> `keys` and metrics, of each (N,), as `write_results` left them. Raises UserError."""
    files = sorted((folder / "samples").glob("*.npz"))
    if not files:
        raise UserError(f"{folder} has no per-sample results; {_remedy(folder)}")
    out = {}
    for file in files:
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                out[file.stem] = {name: arrays[name] for name in arrays.files}
            keys = out[file.stem]["keys"]
        except Exception as error:  # numpy, zipfile and zlib raise about any at a damaged file
            raise UserError(f"per-sample results {file} cannot be read: {error}") from error
        if any(array.shape != (len(keys),) for array in out[file.stem].values()):
            raise UserError(f"per-sample results {file} are not one value a sample")
    return out


def _remedy(folder: Path) -> str:
    """The command that writes per-sample results, or the place where a run already has some."""
    if not is_run(folder):
        return f"write them by `clipx eval MODEL --out {folder}`"
    inside = folder / "evaluations"
    if (inside / "samples").is_dir():
        return f"those of this run are in {inside}"
    return f"write them by `clipx eval {folder} --out {inside}`, and compare {inside}"
