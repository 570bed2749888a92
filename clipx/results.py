"""Write, read and compare the results of evaluators, in a folder.

results.jsonl          one line per set and metric, with its 95 % interval
clip_benchmark/        one JSON per set, as CLIP_benchmark writes them
samples/<set>.npz      one value a sample: `keys`, and an array for each metric that is a mean, with
                       `weights/<metric>` beside it if the mean is weighted
tables/<set>.json      per-class recall, confusions and the like
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipx import metrics, strict_json
from clipx.files import write_whole
from clipx.types import Result, UserError

WEIGHTS = "weights/"
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


@dataclass(frozen=True)
class Difference:
    """Two values of one metric over the samples that both have. `distinguishable`, p and the
    interval come from one test: the interval holds 0 exactly if the two are not distinguishable.

    low, high: 95 % of the difference second - first, None if too few samples differ
    p: of McNemar's exact test if all samples are right or wrong, else of sign flips
    """

    set: str
    metric: str
    first: float
    second: float
    low: float | None
    high: float | None
    p: float
    distinguishable: bool
    num_samples: int


def compare(first: Path, second: Path) -> list[Difference]:
    """All metrics of all sets that both folders have. Raises UserError."""
    sets_first = read_samples(first)
    sets_second = read_samples(second)
    shared = [name for name in sets_first if name in sets_second]
    if not shared:
        raise UserError(
            f"{first} and {second} have no set in common: {', '.join(sets_first)} and "
            f"{', '.join(sets_second)}"
        )
    differences = []
    for name in shared:
        differences += _compare_set(name, sets_first[name], sets_second[name])
    return differences


def _compare_set(
    name: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> list[Difference]:
    # Pair by key: a copy of the set may have its samples in another order.
    sizes = (len(first["keys"]), len(second["keys"]))
    keys, rows_first, rows_second = np.intersect1d(
        first["keys"], second["keys"], return_indices=True
    )
    if len(keys) < max(sizes):
        raise UserError(
            f"set {name} has {sizes[0]} and {sizes[1]} samples, of which {len(keys)} are the same: "
            "the two were not evaluated on the same test set"
        )
    first = {name: values[rows_first] for name, values in first.items()}
    second = {name: values[rows_second] for name, values in second.items()}
    differences = []
    for metric in first:
        if metric == "keys" or metric.startswith(WEIGHTS) or metric not in second:
            continue
        weights = first.get(WEIGHTS + metric)
        weights_second = second.get(WEIGHTS + metric, weights)
        if weights is None:
            weights = weights_second  # results of an older clipx have none
        elif weights_second is not None and not np.array_equal(weights, weights_second):
            raise UserError(
                f"set {name} has other numbers of captions an image in one of the two: they were "
                "not evaluated on the same test set"
            )
        values = (torch.from_numpy(first[metric]), torch.from_numpy(second[metric]))
        weight_tensor = None if weights is None else torch.from_numpy(weights)
        differences.append(difference(name, metric, *values, weight_tensor))
    return differences


def difference(
    name: str, metric: str, first: Tensor, second: Tensor, weights: Tensor | None = None
) -> Difference:
    """first, second: (N,) values of the same samples; weights: (N,) of the samples in the mean"""
    # One procedure for p and interval, so that they never contradict each other.
    test = metrics.paired_test(first, second, weights)
    low, high = test.interval or (None, None)
    return Difference(
        set=name,
        metric=metric,
        first=metrics.weighted_mean(first, weights),
        second=metrics.weighted_mean(second, weights),
        low=low,
        high=high,
        p=test.p,
        distinguishable=test.distinguishable,
        num_samples=len(first),
    )
