"""The model of a run of open_clip: its JSON with all --force flags applied, and its weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from clipx.config import Data
from clipx.migrate.params import Params
from clipx.models.hub import HUB, LOCAL
from clipx.models.initial import pretrained
from clipx.models.initial.checkpoint import find_weights
from clipx.models.model_json import read_model_json, without_pretrained_towers
from clipx.types import UserError

MODEL_FILE = "model.json"


def model_settings(
    params: Params, out: Path, notes: list[str], *, has_checkpoint: bool
) -> tuple[Data, dict[str, Any]]:
    """(the config's `model`, the model's JSON). Raises UserError.

    out: folder of the JSON, if it differs from that of the model's name
    """
    name = params["model"]
    original = read_model_json(name)
    model_json = _forced(params, original)
    weights = params["pretrained"]
    initial: Data | None = None
    if weights and not Path(weights).is_file():
        initial = {"name": "pretrained", "tag": weights, "model": name}
        if has_checkpoint:
            # The images of the run were normalized as those of the published weights.
            model_json = pretrained.Config(weights, name).build().with_preprocessing(model_json)
    elif weights:
        initial = {"name": "checkpoint", "path": weights}
    elif name.startswith((HUB, LOCAL)) and not has_checkpoint:
        initial = _of_folder(name)
    if has_checkpoint:
        initial = None
        model_json = without_pretrained_towers(model_json)

    if params["pretrained_image"] and not has_checkpoint and not initial:
        if model_json["vision_cfg"].get("timm_model_name"):
            vision_cfg = {**model_json["vision_cfg"], "timm_model_pretrained": True}
            model_json = {**model_json, "vision_cfg": vision_cfg}
        else:
            notes.append("--pretrained-image is without effect: the image tower is not timm's")
    settings: Data = {"name": name if model_json == original else str(out / MODEL_FILE)}
    if initial is not None:
        settings["initial"] = initial
    settings |= _locks(params, model_json, notes)
    return settings, model_json


def _of_folder(name: str) -> Data | None:
    """The weights in a folder or repository; None for a folder without."""
    if name.startswith(LOCAL):
        try:
            find_weights(name)
        except UserError:  # open_clip begins with random weights there
            return None
    return {"name": "checkpoint", "path": name}


def _forced(params: Params, original: dict[str, Any]) -> dict[str, Any]:
    """The JSON with the flags that change it."""
    model_json = copy.deepcopy(original)
    if params["force_quick_gelu"]:
        model_json["quick_gelu"] = True
    if params["force_patch_dropout"] is not None:
        model_json["vision_cfg"]["patch_dropout"] = params["force_patch_dropout"]
    size = params["force_image_size"]
    if size is not None:
        sides = size if isinstance(size, list | tuple) else [size]
        if not sides or len(set(sides)) > 1 or not isinstance(sides[0], int):
            raise UserError(f"--force-image-size {size} is not square; clipx takes one number")
        model_json["vision_cfg"]["image_size"] = sides[0]
    if params["force_context_length"] is not None:
        model_json["text_cfg"]["context_length"] = params["force_context_length"]
    if params["siglip"]:
        model_json["init_logit_scale"] = math.log(10)
        model_json["init_logit_bias"] = -10.0
    preprocessing = {}
    for flag in ("mean", "std", "interpolation", "resize_mode"):
        value = params[f"image_{flag}"]
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]  # one number for all channels
        if value is not None:
            preprocessing[flag] = value
    if preprocessing:
        model_json["preprocess_cfg"] = model_json.get("preprocess_cfg", {}) | preprocessing
    return model_json


def _locks(params: Params, model_json: dict[str, Any], notes: list[str]) -> Data:
    """open_clip locks the trunk of a tower of timm or transformers, and trains its head."""
    is_timm = bool(model_json["vision_cfg"].get("timm_model_name"))
    is_huggingface = bool(model_json["text_cfg"].get("hf_model_name"))
    locked = []
    unlocked: Data = {}
    if params["lock_image"]:
        locked.append("visual.trunk" if is_timm else "visual")
        if params["lock_image_unlocked_groups"]:
            unlocked["visual"] = params["lock_image_unlocked_groups"]
        is_resnet = isinstance(model_json["vision_cfg"].get("layers"), list)
        if (is_timm or is_resnet) and not params["lock_image_freeze_bn_stats"]:
            notes.append(
                "batch norms of the locked image tower, if it has some, keep their statistics; "
                "without --lock-image-freeze-bn-stats those of open_clip went on to change"
            )
    if params["lock_text"]:
        if is_huggingface and not params["lock_text_freeze_layer_norm"]:
            raise UserError(
                "--lock-text without --lock-text-freeze-layer-norm: open_clip trained the layer "
                "norms of the locked text tower, and clipx locks them. To start a run that locks "
                "them, set lock_text_freeze_layer_norm to True in a copy of params.txt, and leave "
                "--checkpoint out"
            )
        locked.append("text.transformer" if is_huggingface else "text")
        if params["lock_text_unlocked_layers"]:
            unlocked["text"] = params["lock_text_unlocked_layers"]
    settings: Data = {}
    if locked:
        settings["locked"] = locked
    if unlocked:
        settings["unlocked_groups"] = unlocked
    return settings
