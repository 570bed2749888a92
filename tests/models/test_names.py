"""Which model a name means: open_clip's names, JSON files, folders, checkpoints, repositories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from small_models import small, small_trunks, write_folder, write_text_config
from tiny_runs import MODEL

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import Training, TrainState
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.model_json import image_size, read_model_json
from clipx.types import UserError

PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resize_mode": "squash"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with one repository, lab/small, and no network."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--lab--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "models--lab--small" / "refs").mkdir()
    (cache / "models--lab--small" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_folder_file_and_repository_say_the_same(tmp_path: Path, hub: Path) -> None:
    cfg = read_model_json("ViT-B-32") | {"preprocess_cfg": PREPROCESS}
    name = write_folder(cfg, tmp_path / "model")
    write_folder(cfg, hub)
    (tmp_path / "plain.json").write_text(json.dumps(cfg))
    for other in (
        name,
        "hf-hub:lab/small",
        str(tmp_path / "plain.json"),
        str(tmp_path / "model" / "open_clip_config.json"),
    ):
        assert ModelConfig(name=other).read() == cfg


def test_names_with_a_slash_are_those_of_openai() -> None:
    assert read_model_json("ViT-B/32-quickgelu") == read_model_json("ViT-B-32-quickgelu")


def test_what_the_hub_does_not_give_is_reported_with_the_remedy(hub: Path) -> None:
    for name in ("hf-hub:lab/other", "hf-hub:lab/small"):
        with pytest.raises(UserError, match=r"cannot be fetched.*\n.*HF_HOME.*local-dir:"):
            read_model_json(name)
    with pytest.raises(UserError, match="is not of the form hf-hub:organization/repository"):
        read_model_json("hf-hub:small")
    (hub / "open_clip_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_model_json("hf-hub:lab/small")


def test_a_checkpoint_is_a_folder_of_open_clips(tmp_path: Path) -> None:
    """Both ways: its model has a name here, and open_clip loads it with its weights."""
    torch.manual_seed(0)
    model = DualEncoder(MODEL).eval()
    json_ = MODEL | {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    path = checkpoints.save(
        tmp_path,
        TrainState(),
        model.state_dict(),
        Training({}, []),
        checkpoints.About(json_, keep=1),
    )
    cfg = read_model_json(f"local-dir:{path}")
    assert {key: cfg[key] for key in MODEL} == MODEL
    assert cfg["preprocess_cfg"]["mean"] == [0.5] * 3
    other = open_clip.create_model(f"local-dir:{path}").eval()
    assert tuple(open_clip.get_model_preprocess_cfg(other)["std"]) == (0.25, 0.25, 0.25)
    image, text = torch.randn(2, 3, 32, 32), torch.randint(1, 900, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(image), other.encode_image(image, True))
        torch.testing.assert_close(model.encode_text(text), other.encode_text(text, True))


def test_a_folder_brings_its_text_tower_and_asks_for_no_pretrained_one(tmp_path: Path) -> None:
    cfg = small("bert", tmp_path / "elsewhere")
    cfg["text_cfg"] |= {"hf_model_name": "lab/bert", "hf_tokenizer_name": "lab/bert"}
    name = write_folder(cfg, tmp_path / "model")
    write_text_config("bert", tmp_path / "model")
    text_cfg = read_model_json(name)["text_cfg"]
    assert text_cfg["hf_model_name"] == str(tmp_path / "model")
    assert text_cfg["hf_tokenizer_name"] == "lab/bert"  # no tokenizer lies there
    assert text_cfg["hf_model_pretrained"] is False
    DualEncoder(read_model_json(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multimodal_cfg": {}}, "is a CoCa"),
        ({"audio_cfg": {}}, "keys that clipx does not know: audio_cfg"),
        ({"vision_cfg": {"image_size": [64, 32]}}, r"\[64, 32\] is not square"),
        ({"vision_cfg": {"width": 0}}, "vision_cfg.width: .* greater than or equal to 1 .given: 0"),
        ({"vision_cfg": {"width": 16, "head_width": 64}}, "16 does not divide into 0 heads"),
        ({"vision_cfg": {"layers": -1}}, "vision_cfg.layers.0: .* greater than or equal to 1"),
        ({"vision_cfg": {"patch_size": None}}, "vision_cfg.patch_size: must be an integer"),
        (
            {"vision_cfg": {"patch_size": 9999}},
            "vision_cfg.patch_size: .*(less than or equal to 4096|is larger than)",
        ),
        ({"vision_cfg": {"patch_dropout": 1.0}}, r"patch_dropout: .* less than 1 .given: 1.0"),
        ({"vision_cfg": {"mlp_ratio": float("nan")}}, r"mlp_ratio: .* finite number .given: nan"),
        ({"text_cfg": {"width": 30, "heads": 4}}, "30 does not divide into 4 heads"),
        ({"text_cfg": {"context_length": 1}}, "context_length: .* greater than or equal to 2"),
        ({"embed_dim": 10**22}, "embed_dim: .* less than or equal to 65536 .given: 1000"),
        ({"init_logit_scale": "x"}, "init_logit_scale: .* valid number"),
        ({"vision_cfg": None}, "lacks vision_cfg"),
    ],
)
def test_a_json_that_clipx_cannot_train_is_reported(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    cfg = {key: v for key, v in (MODEL | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        read_model_json(write_folder(cfg, tmp_path))


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        ("vision_cfg", {"patch_drop": 1}, "vision_cfg has patch_drop, which"),
        ("text_cfg", {"use_rope": True}, "text_cfg has use_rope, which"),
        (
            "vision_cfg",
            {"timm_model_name": "vit_bass"},
            r"'vit_bass' is no model of timm.*vit_base",
        ),
        ("text_cfg", {"hf_model_name": "/nowhere"}, "'/nowhere' cannot be built"),
    ],
)
def test_a_tower_that_cannot_be_built_is_reported(
    part: str, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        DualEncoder(MODEL | {part: MODEL[part] | setting})


def test_a_text_tower_of_a_kind_that_open_clip_does_not_know_is_reported(tmp_path: Path) -> None:
    import transformers

    transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9).save_pretrained(tmp_path)
    setting = {"hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    with pytest.raises(UserError, match="cannot be built"):
        DualEncoder(MODEL | {"text_cfg": setting})


@pytest.mark.parametrize(("kind", "room"), [("bert", 32), ("roberta-ViT-B-32", 30)])
def test_captions_fit_the_positions_of_a_text_tower(kind: str, room: int, tmp_path: Path) -> None:
    cfg = small(kind, tmp_path)
    text_cfg = cfg["text_cfg"] | {"hf_model_pretrained": False, "context_length": room}
    text = DualEncoder(cfg | {"text_cfg": text_cfg}).eval().text
    assert text(torch.full((1, room), 7)).isfinite().all()
    with pytest.raises(UserError, match=f"context_length {room + 1} .* set it to {room} at most"):
        DualEncoder(cfg | {"text_cfg": text_cfg | {"context_length": room + 1}})


@pytest.mark.parametrize("kind", ["ViT-B-16-SigLIP", "EVA02-B-16", "PE-Core-B-16", "convnext_base"])
def test_a_timm_tower_takes_the_image_size_of_the_json(kind: str, tmp_path: Path) -> None:
    cfg = small(kind, tmp_path)
    cfg["vision_cfg"]["image_size"] = 128
    with small_trunks():
        visual = DualEncoder(cfg).eval().visual
    assert visual(torch.randn(1, 3, 128, 128)).shape == (1, 48)
    assert image_size(cfg) == 128
    if kind != "convnext_base":
        with pytest.raises(AssertionError):
            visual(torch.randn(1, 3, 224, 224))


def test_a_timm_tower_of_one_size_only_is_reported(tmp_path: Path) -> None:
    cfg = small("vit_relpos_medium_patch16_cls_224", tmp_path)
    # Its layers mix tokens by weights, one for each pair of places: another number cannot be.
    cfg["vision_cfg"] |= {"timm_model_name": "mixer_s32_224", "image_size": 128}
    with pytest.raises(UserError, match="timm's mixer_s32_224 takes images of 224 pixels only"):
        DualEncoder(cfg)
