"""Write and read the results of evaluators, in a folder.

results.jsonl          one line per set and metric, with its 95 % interval
clip_benchmark/        one JSON per set, as CLIP_benchmark writes them
samples/<set>.npz      one value a sample: `keys`, and an array for each metric that is a mean, with
                       `weights/<metric>` beside it if the mean is weighted, and `clusters` if
                       samples are not independent
tables/<set>.json      per-class recall, confusions and the like
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipx import strict_json
from clipx.files import write_whole
from clipx.types import Result, UserError

WEIGHTS = "weights/"
CLUSTERS = "clusters"
# Our metric -> CLIP_benchmark's, by its task. There, an image is retrieved by a text.
CLIP_BENCHMARK = {
    "zeroshot_classification": {
        "zeroshot-top1": "acc1",
        "zeroshot-top5": "acc5",
        "zeroshot-mean_per_class_recall": "mean_per_class_recall",
    },
    "zeroshot_retrieval": {
        "text_to_image_R@1": "image_retrieval_recall@1",
        "text_to_image_R@5": "image_retrieval_recall@5",
        "text_to_image_R@10": "image_retrieval_recall@10",
        "image_to_text_R@1": "text_retrieval_recall@1",
        "image_to_text_R@5": "text_retrieval_recall@5",
        "image_to_text_R@10": "text_retrieval_recall@10",
    },
    "linear_probe": {
        "probe-top1": "lp_acc1",
        "probe-top5": "lp_acc5",
        "probe-mean_per_class_recall": "lp_mean_per_class_recall",
    },
}


# Parts of the names of metrics that are shown in percent.
RATES = ("top", "R@", "mAP", "recall", "ece", "accuracy", "share", "gap", "worst", "slice")


def is_rate(metric: str) -> bool:
    # The modality gap is a distance, although the word is among those of rates.
    return metric != "modality_gap" and any(word in metric for word in RATES)


def check_out(folder: Path) -> None:
    """Raise UserError if results must not be written to `folder`."""
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
    files = ("config.yaml", "status.json", "metrics.jsonl", "checkpoints")
    return any((folder / name).exists() for name in files)


def write_results(folder: Path, model: str, results: Mapping[str, Result]) -> None:
    """results: set -> Result. Raises OSError."""
    for name in ("samples", "tables", "clip_benchmark"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for name, result in results.items():
        for record in lines_of(model, name, result):
            lines.append(strict_json.dumps(record) + "\n")
        arrays: dict[str, Any] = {"keys": np.array(result.keys, dtype=str)}
        for metric, values in result.samples.items():
            arrays[metric] = values.numpy()
            if metric in result.weights:
                arrays[WEIGHTS + metric] = result.weights[metric].numpy()
        if result.clusters is not None:
            arrays[CLUSTERS] = result.clusters.numpy()
        # Opened here, since savez appends .npz to a name with another suffix.
        with (folder / "samples" / f"{name}.npz").open("wb") as file:
            np.savez_compressed(file, **arrays)
        write_whole(folder / "tables" / f"{name}.json", strict_json.dumps(result.tables, indent=1))
        for task, record in clip_benchmark_records(model, name, result).items():
            text = strict_json.dumps(record, indent=1)
            write_whole(folder / "clip_benchmark" / f"{name}_{task}.json", text)
    # Last: a folder with results.jsonl has all of its files.
    write_whole(folder / "results.jsonl", "".join(lines))


def lines_of(model: str, name: str, result: Result) -> list[dict[str, Any]]:
    """One record for each metric of a set."""
    num_samples = int(result.metrics["num_samples"])
    records = []
    for metric, value in result.metrics.items():
        if metric != "num_samples":
            record: dict[str, Any] = {"model": model, "set": name, "metric": metric, "value": value}
            record["low"], record["high"] = result.intervals.get(metric, (None, None))
            record["num_samples"] = num_samples
            records.append(record)
    return records


def clip_benchmark_records(model: str, name: str, result: Result) -> dict[str, dict[str, Any]]:
    """Task -> record, for the metrics that CLIP_benchmark has too."""
    records = {}
    for task, names in CLIP_BENCHMARK.items():
        values = {}
        for metric, its_name in names.items():
            if metric in result.metrics:
                values[its_name] = result.metrics[metric]
        if values:
            records[task] = {
                "dataset": name,
                # CLIP_benchmark has an architecture and its weights; here one path names both.
                "model": model,
                "pretrained": model,
                "task": task,
                "metrics": values,
                "language": "en",
            }
    return records


def read_samples(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Set -> `keys` and metrics, (N,) each, as written by `write_results`. Raises UserError."""
    files = sorted((folder / "samples").glob("*.npz"))
    if not files:
        inside = folder / "evaluations"
        if not is_run(folder):
            remedy = f"write them by `clipx eval MODEL --out {folder}`"
        elif (inside / "samples").is_dir():
            remedy = f"those of this run are in {inside}"
        else:
            remedy = f"write them by `clipx eval {folder} --out {inside}`, and compare {inside}"
        raise UserError(f"{folder} has no per-sample results; {remedy}")
    sets = {}
    for path in files:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
                arrays = dict(npz)
            num_samples = len(arrays["keys"])
        except Exception as error:  # numpy, zipfile and zlib have many for a damaged file
            raise UserError(f"per-sample results {path} cannot be read: {error}") from error
        if any(array.shape != (num_samples,) for array in arrays.values()):
            raise UserError(f"per-sample results {path} are not one value a sample")
        sets[path.stem] = arrays
    return sets
