"""Weights of transformers' CLIPModel and SiglipModel in the towers that clipx trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import small_trunks
from torch import Tensor
from torch.nn import functional as F

from clipx.data.tokenizers import build_tokenizer, pad
from clipx.models import transformers_config
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.initial import checkpoint
from clipx.types import UserError

SIZES = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 3}


def save_clip(folder: Path, **text: Any) -> Any:
    """A CLIPModel with the tokenizer's ids of OpenAI's."""
    text = (
        SIZES | {"vocab_size": 49408, "max_position_embeddings": 16, "eos_token_id": 49407} | text
    )
    vision = SIZES | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return save(transformers.CLIPModel(config), processor, folder)


def save_siglip(folder: Path) -> Any:
    text = SIZES | {"vocab_size": 90, "max_position_embeddings": 16}
    vision = SIZES | {"image_size": 224, "patch_size": 16, "hidden_act": "gelu"}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    processor = transformers.SiglipImageProcessor(size={"height": 224, "width": 224}, resample=3)
    return save(transformers.SiglipModel(config), processor, folder)


def save(model: Any, processor: Any, folder: Path) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def load(folder: Path) -> tuple[DualEncoder, dict[str, Any]]:
    """As a run does, with `model: {name: local-dir:folder, initial: folder}`."""
    config = ModelConfig(name=f"local-dir:{folder}", initial=checkpoint.Config(str(folder)))
    model_json = config.read()
    model = DualEncoder(model_json)
    initial = config.build_initial()
    assert initial is not None
    initial.prepare()
    assert initial.load(model) == []
    return model.eval(), model_json


def features(model: Any, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    image = model.get_image_features(pixel_values=pixels).pooler_output
    text = model.get_text_features(input_ids=ids).pooler_output
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_clip_model_is_trained_from_its_own_embeddings(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    save_clip(tmp_path, hidden_act=activation)
    set_in_config(tmp_path, "vision_config", hidden_act=activation)
    reference = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    model, model_json = load(tmp_path)
    assert "hf_tokenizer_name" not in model_json["text_cfg"]  # the folder may go
    tokenizer = build_tokenizer(model_json["text_cfg"])
    captions = ["a red square", "the color blue", "gray"]
    ids = pad([tokenizer.encode(caption, 16) for caption in captions], tokenizer.pad_id, 16)
    pixels = torch.randn(3, 3, 32, 32)
    image, text = features(reference, pixels, ids)
    torch.testing.assert_close(model.encode_image(pixels), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(ids), text, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.logit_scale, reference.logit_scale)
    assert (image[0] - image[1]).norm() > 0.02, "images that are all alike would show nothing"
    assert (text[0] - text[1]).norm() > 0.02


@torch.no_grad()
def test_a_siglip_model_is_trained_from_its_own_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    reference = save_siglip(tmp_path)
    # The trunk of this name is cut down to these sizes in tests.
    monkeypatch.setitem(transformers_config._SIGLIP_TRUNKS, (48, 2, 192), "vit_base")
    with small_trunks():
        model, model_json = load(tmp_path)
    assert model_json["vision_cfg"]["timm_model_name"] == "vit_base_patch16_siglip_224"
    ids = torch.randint(0, 90, (3, 16))
    pixels = torch.randn(3, 3, 224, 224)
    image, text = features(reference, pixels, ids)
    torch.testing.assert_close(model.encode_image(pixels), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(ids), text, rtol=0, atol=1e-5)
    assert model.logit_bias is not None
    torch.testing.assert_close(model.logit_bias, reference.logit_bias.reshape(()))
    assert (image[0] - image[1]).norm() > 0.02
    assert (text[0] - text[1]).norm() > 0.02


def set_in_config(folder: Path, section: str, **values: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    content[section] |= values
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act 'gelu' for images and 'quick_gelu'"),
        ("text_config", {"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-05 and 1e-06"),
    ],
)
def test_what_the_towers_cannot_be_is_refused(
    tmp_path: Path, section: str, values: dict[str, Any], message: str
) -> None:
    save_clip(tmp_path)
    set_in_config(tmp_path, section, **values)
    with pytest.raises(UserError, match=message):
        ModelConfig(name=f"local-dir:{tmp_path}").read()


def test_a_siglip_of_other_sizes_is_refused(tmp_path: Path) -> None:
    save_siglip(tmp_path)
    with pytest.raises(UserError, match="2 layers of width 48 with patches of 16 pixels"):
        ModelConfig(name=f"local-dir:{tmp_path}").read()


def test_the_weights_of_an_architecture_must_have_its_activation(tmp_path: Path) -> None:
    """Otherwise training would start from a damaged model, and nothing would say so."""
    save_clip(tmp_path)
    cfg = ModelConfig(name=f"local-dir:{tmp_path}").read()
    (tmp_path / "model.json").write_text(json.dumps(cfg | {"quick_gelu": False}))
    wrong = ModelConfig(name=str(tmp_path / "model.json"), initial=checkpoint.Config(str(tmp_path)))
    with pytest.raises(UserError, match="was trained with quick_gelu True, and the model has"):
        wrong.read()


def test_an_incomplete_file_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.bias has no k_proj"):
        load(tmp_path)
