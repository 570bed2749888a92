"""The data and the evaluators of a run of open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clipx.config import Data
from clipx.migrate.params import Params
from clipx.types import UserError

_OWN_AUGMENTATIONS = {
    "scale": "crop_scale",
    "color_jitter": "color_jitter",
    "color_jitter_prob": "color_jitter_prob",
    "gray_scale_prob": "gray_scale_prob",
}
_TIMM_AUGMENTATIONS = {
    "scale": "crop_scale",
    "ratio": "crop_ratio",
    "color_jitter": "color_jitter",
    "re_prob": "erase_prob",
}
"""Entries of --aug-cfg that take effect without and with its `use_timm`, and their settings of
`data`."""


def data_settings(params: Params, notes: list[str]) -> Data:
    """Raises UserError for a run without training data."""
    path = params["train_data"]
    kind = dataset_type(params, path)
    data: Data = {}
    if kind == "synthetic":
        samples = params["train_num_samples"] or 100
        data["sources"] = {"train": {"name": "synthetic", "samples": samples}}
        notes.append("--dataset-type synthetic: clipx draws shapes with captions that fit")
    elif not path:
        raise UserError(
            "params.txt has no train_data: the run was an evaluation. `clipx eval` is the verb "
            "for that"
        )
    elif kind == "webdataset" and params["train_data_upsampling_factors"]:
        data |= _upsampled(path.split("::"), params["train_data_upsampling_factors"], notes)
    elif kind == "webdataset":
        data["shards"] = path
    else:
        data["sources"] = {"train": _source(params, kind, path)}
    data["caption_field"] = _caption_field(params, kind)
    data["workers"] = params["workers"]
    data["exif_orientation"] = False  # open_clip trains on pictures as stored
    data |= _augmentation(params["aug_cfg"], notes)
    return data


def evaluator_settings(params: Params, epochs: Callable[[int], str]) -> Data:
    """epochs: a number of epochs as a duration"""
    evaluators: Data = {}
    if params["val_data"] and params["val_frequency"] > 0:
        kind = dataset_type(params, params["val_data"])
        if kind != "synthetic":
            evaluators["val"] = {
                "name": "validation_loss",
                "source": _source(params, kind, params["val_data"]),
                "caption_field": _caption_field(params, kind),
                "batch_size": max(2, params["batch_size"]),
                "every": epochs(params["val_frequency"]),
            }
    paths = {"imagenet": params["imagenet_val"], "imagenet-v2": params["imagenet_v2"]}
    for classes, path in paths.items():
        if not path or params["zeroshot_frequency"] < 1:
            continue
        if classes == "imagenet-v2":
            path = f"{path}/ImageNetV2-matched-frequency"  # where its package unpacks it
        evaluators[classes] = {
            "name": "zero_shot",
            "path": path,
            "classes": classes,
            "templates": "openai",
            "every": epochs(params["zeroshot_frequency"]),
        }
    return evaluators


def dataset_type(params: Params, path: str | None) -> str:
    """webdataset, csv or synthetic. Raises UserError."""
    kind = params["dataset_type"]
    if kind == "auto":
        extension = (path or "").rpartition(".")[2].rstrip("}")
        known = {"csv": "csv", "tsv": "csv", "tar": "webdataset", "": "webdataset"}
        kind = known.get(extension, "")
    if kind not in ("webdataset", "csv", "synthetic"):
        raise UserError(
            f"--dataset-type {params['dataset_type']} of {path}: it is neither webdataset, csv nor "
            "synthetic; correct the line dataset_type in a copy of params.txt"
        )
    return kind


def _source(params: Params, kind: str, path: str) -> Data:
    if kind == "webdataset":
        return {"name": "webdataset", "shards": path}
    return {
        "name": "table",
        "path": path,
        "image_column": params["csv_img_key"],
        # open_clip opens paths from where it was started, clipx by default from the table's folder.
        "image_root": ".",
        "separator": params["csv_separator"],
    }


def _caption_field(params: Params, kind: str) -> str:
    return params["csv_caption_key"] if kind == "csv" else "txt"


def _upsampled(paths: list[str], text: str, notes: list[str]) -> Data:
    """Several sources, of which some are seen more often. Raises UserError."""
    try:
        factors = [float(factor) for factor in text.split("::")]
    except ValueError as error:
        raise UserError(
            f"--train-data-upsampling-factors {text} are no numbers: {error}"
        ) from error
    if len(factors) != len(paths) or min(factors) <= 0:
        raise UserError(
            f"--train-data-upsampling-factors {text} must be {len(paths)} numbers above 0, one for "
            "each part of --train-data"
        )
    sources: Data = {}
    repeat: Data = {}
    for number, (path, factor) in enumerate(zip(paths, factors, strict=True)):
        name = f"part_{number}"
        sources[name] = {"name": "webdataset", "shards": path}
        times = factor / min(factors)
        if abs(times - round(times)) > 1e-6:
            raise UserError(
                f"--train-data-upsampling-factors {text}: data.repeat takes whole numbers, and "
                f"{factor:g} is {times:g} times the smallest. Remove the line from a copy of "
                "params.txt, and set data.weights to the share of each source in the samples seen "
                "(its factor times its number of samples)"
            )
        repeat[name] = round(times)
    notes.append(
        "--train-data-upsampling-factors: an epoch has each sample as often as data.repeat says, "
        "where open_clip drew shards at random"
    )
    return {"sources": sources, "repeat": repeat}


def _augmentation(settings: dict[str, Any], notes: list[str]) -> Data:
    """Of --aug-cfg. What open_clip itself leaves unused is left out."""
    settings = {name: value for name, value in settings.items() if value is not None}
    uses_timm = bool(settings.pop("use_timm", False))
    names = _TIMM_AUGMENTATIONS if uses_timm else _OWN_AUGMENTATIONS
    data: Data = {}
    others = []
    for name, value in settings.items():
        if name in names:
            data[names[name]] = list(value) if isinstance(value, tuple) else value
        elif not (uses_timm and name == "re_count" and value == 1):
            others.append(name)
    jitter = data.get("color_jitter")
    if isinstance(jitter, int | float):
        data["color_jitter"] = [jitter, jitter, jitter, 0.0]
    elif isinstance(jitter, list) and len(jitter) == 3:
        data["color_jitter"] = [*jitter, 0.0]
    if uses_timm and jitter:
        data["color_jitter_prob"] = 1.0  # timm changes the colors of each picture
    if uses_timm and data.get("erase_prob"):
        notes.append("--aug-cfg re_prob: noise is drawn from levels alike, where timm's is normal")
    without_effect = ("color_jitter_prob", "gray_scale_prob")
    if not uses_timm:
        without_effect = ("ratio", "re_prob", "re_count")
    for name in sorted(others):
        reason = "has no setting"
        if name in without_effect:
            reason = f"has no effect in open_clip {'with' if uses_timm else 'without'} use_timm"
        notes.append(f"--aug-cfg {name} {reason} and is left out")
    return data
