"""DualEncoder against open_clip's CustomTextCLIP of the same JSON, with the same weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.model_json import fixed_text_length, read_model_json
from clipx.models.text_transformer import TextTransformer
from clipx.models.transformer import Transformer
from clipx.models.vit import VisionTransformer
from clipx.types import UserError

ROOT = Path(__file__).parents[2]
VISION = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 20, "vocab_size": 500, "width": 48, "heads": 3, "layers": 2}


def cut_small(name: str) -> dict[str, Any]:
    """One of open_clip's models with its structure kept and its size taken out."""
    cfg = read_model_json(name)
    cfg["vision_cfg"] |= {"layers": 2, "width": 64, "head_width": 32, "image_size": 64}
    cfg["text_cfg"] |= {"layers": 2, "width": 48, "heads": 3, "vocab_size": 500}
    return cfg | {"embed_dim": 24}


def siglip_text() -> dict[str, Any]:
    """SigLIP's: no causal mask, read at the last position, a projection with bias."""
    settings = read_model_json("ViT-B-16-SigLIP")["text_cfg"]
    return settings | TEXT


def demo_tiny() -> dict[str, Any]:
    """The demo's model with fewer words and layers."""
    cfg = json.loads((ROOT / "configs/model/demo_tiny.json").read_text())
    cfg["vision_cfg"] |= {"layers": 2}
    cfg["text_cfg"] |= {"layers": 2, "vocab_size": 500}
    return cfg


MODELS: dict[str, dict[str, Any]] = {
    "demo_tiny": demo_tiny(),
    "quickgelu": cut_small("ViT-B-32-quickgelu"),
    "layer scale": {
        "embed_dim": 24,
        "vision_cfg": VISION | {"ls_init_value": 0.3, "mlp_ratio": 3.0},
        "text_cfg": TEXT | {"ls_init_value": 0.2, "mlp_ratio": 2.0},
    },
    "a patch size that does not divide the image": {
        "embed_dim": 24,
        "vision_cfg": VISION | {"image_size": 70},
        "text_cfg": TEXT,
    },
    "modified resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
    },
    "siglip text": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": siglip_text(),
        "init_logit_scale": math.log(10),
        "init_logit_bias": -10,
        "custom_text": True,
    },
}
OURS = {"demo_tiny", "quickgelu", "layer scale", "a patch size that does not divide the image"}


@pytest.fixture(autouse=True)
def _same_initial_weights() -> None:
    torch.manual_seed(0)


def reference(cfg: dict[str, Any]) -> nn.Module:
    known = {key: value for key, value in cfg.items() if key != "custom_text"}
    return open_clip.CustomTextCLIP(**json.loads(json.dumps(known))).eval()


def stirred(model: nn.Module) -> nn.Module:
    """Add noise to each parameter, so that a missing bias or gain changes the result."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def captions(cfg: dict[str, Any], lengths: list[int], *, total: int | None = None) -> Tensor:
    """(B, T) ids as of a tokenizer: start, words, end (the highest id), zeros; T = context_length
    unless given."""
    top = cfg["text_cfg"]["vocab_size"] - 1
    width = total or cfg["text_cfg"].get("context_length", 77)
    generator = torch.Generator().manual_seed(len(lengths))
    text = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(1, top - 1, (length,), generator=generator)
        text[row, 0], text[row, length - 1] = top - 1, top
    return text


def images(cfg: dict[str, Any], count: int = 4) -> Tensor:
    """Large patches of color: noise of single pixels looks all alike to a convolution."""
    size = cfg["vision_cfg"].get("image_size", 224)
    coarse = 2 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bicubic")


def inputs(cfg: dict[str, Any]) -> tuple[Tensor, Tensor]:
    full = cfg["text_cfg"].get("context_length", 77)
    return images(cfg), captions(cfg, [2, 5, 9, full])


def assert_same_embeddings(ours: DualEncoder, other: nn.Module, cfg: dict[str, Any]) -> None:
    image, text = inputs(cfg)
    with torch.no_grad():
        pairs = [
            (ours.encode_image(image), other.encode_image(image, normalize=True)),
            (ours.encode_text(text), other.encode_text(text, normalize=True)),
        ]
    for part, expected in pairs:
        # unit rows; float32 rounding through a few blocks is some 1e-7
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)
        assert (part[0] - part[1]).norm() > 1e-3, "rows must differ for this test to show anything"


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_clipx_give_the_same_embeddings_in_open_clip(name: str) -> None:
    cfg = MODELS[name]
    ours, other = stirred(DualEncoder(cfg)).eval(), reference(cfg)
    other.load_state_dict(ours.state_dict())
    assert_same_embeddings(ours, other, cfg)


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_open_clip_give_the_same_embeddings_in_clipx(name: str) -> None:
    cfg = MODELS[name]
    ours, other = DualEncoder(cfg).eval(), stirred(reference(cfg))
    ours.load_state_dict(other.state_dict())
    assert_same_embeddings(ours, other, cfg)


def test_weights_of_open_clips_clip_class_load_by_its_own_conversion() -> None:
    """CLIP, which most of open_clip's published weights are of, keeps the text tower at its top."""
    cfg = MODELS["quickgelu"]
    other = stirred(open_clip.CLIP(**json.loads(json.dumps(cfg)))).eval()
    weights = convert_to_custom_text_state_dict(dict(other.state_dict()))
    weights.pop("text.attn_mask", None)
    ours = DualEncoder(cfg).eval()
    ours.load_state_dict(weights)
    assert_same_embeddings(ours, other, cfg)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_those_of_open_clip(name: str) -> None:
    cfg = MODELS[name]
    ours, other = DualEncoder(cfg).eval(), stirred(reference(cfg))
    ours.load_state_dict(other.state_dict())
    image, text = inputs(cfg)
    for model in (ours, other):
        image_features, text_features = model(image, text)[:2]
        # a weight for each cell: the sum alone has no gradient along the unit sphere's symmetries
        weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
        (model.logit_scale.exp() * image_features @ text_features.T * weight).sum().backward()
    expected = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    actual = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys() >= {"logit_scale"}
    for key, gradient in expected.items():
        # float32 rounding, relative to the largest entry of this parameter's gradient
        allowed = 1e-4 * gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(actual[key], gradient, rtol=0, atol=allowed, msg=key)


def test_clipx_has_its_own_towers_for_what_the_paper_describes_and_no_others() -> None:
    for name, cfg in MODELS.items():
        model = DualEncoder(cfg)
        own_visual = isinstance(model.visual, VisionTransformer)
        own_text = isinstance(model.text, TextTransformer)
        assert own_visual == (name in OURS | {"siglip text"}), name
        assert own_text == (name != "siglip text"), name


@pytest.mark.parametrize("name", ["demo_tiny", "layer scale"])
def test_trimming_padding_changes_no_embedding_beyond_rounding(name: str) -> None:
    cfg = MODELS[name]
    model = stirred(DualEncoder(cfg)).eval()
    text = captions(cfg, [2, 5, 9, 9])
    with torch.no_grad():
        padded, trimmed = model.encode_text(text), model.encode_text(text[:, :9])
    torch.testing.assert_close(trimmed, padded, rtol=0, atol=1e-6)  # ten float32 steps near 1


@pytest.mark.parametrize("causal", [False, True])
def test_reading_one_token_equals_the_full_last_block(causal: bool) -> None:
    tower = Transformer(32, 3, 4, causal=causal, layer_scale=0.5).double()
    stirred(tower)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(5, 7, 32, generator=generator, dtype=torch.float64)
    read = torch.tensor([0, 6, 3, 3, 1])
    full = x
    for block in tower.resblocks:
        full = block(full)
    expected = full[torch.arange(5), read]
    torch.testing.assert_close(tower(x, read), expected, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_no_token_sees_a_later_one_where_the_mask_is_causal() -> None:
    for causal in (True, False):
        tower = Transformer(32, 2, 4, causal=causal).double()
        x = torch.randn(1, 7, 32, dtype=torch.float64)
        changed = x.clone()
        changed[:, 4:] += 1
        read = torch.tensor([3])
        assert torch.equal(tower(x, read), tower(changed, read)) == causal


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_float32_of_unit_norm_under_bf16_autocast(name: str) -> None:
    cfg = MODELS[name]
    model = stirred(DualEncoder(cfg)).eval()
    image, text = inputs(cfg)
    with torch.no_grad():
        plain = model.encode_image(image), model.encode_text(text)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model.encode_image(image), model.encode_text(text)
    for one, other in zip(plain, cast, strict=True):
        assert one.dtype == other.dtype == torch.float32
        for features in (one, other):
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-5)
        # bfloat16 keeps 8 bits: the same direction to some percent, but not the same numbers
        assert F.cosine_similarity(one, other).min() > 0.98
        assert not torch.equal(one, other)


def test_logit_scale_and_bias_start_at_the_values_of_the_json() -> None:
    model = DualEncoder(MODELS["siglip text"])
    assert model.logit_scale.item() == pytest.approx(math.log(10))
    assert model.logit_bias.item() == -10
    image, text = model(*inputs(MODELS["siglip text"]))
    assert image.shape == text.shape == (4, 24)


def test_logit_scale_starts_at_that_of_clip_without_a_bias_by_default() -> None:
    model = DualEncoder(MODELS["layer scale"])
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.logit_bias is None


@pytest.mark.parametrize(
    ("before", "after"), [(-0.1, 0.0), (2.0, 2.0), (9.0, math.log(100)), (4.7, math.log(100))]
)
def test_clamp_keeps_the_scale_between_1_and_100(before: float, after: float) -> None:
    model = DualEncoder(MODELS["layer scale"])
    with torch.no_grad():
        model.logit_scale.fill_(before)
    model.clamp_logit_scale()
    assert model.logit_scale.item() == pytest.approx(after, rel=1e-6)
    assert model.logit_scale.requires_grad


def test_an_unknown_model_name_says_which_was_probably_meant() -> None:
    with pytest.raises(UserError, match=r"ViT-B-33.*did you mean.*ViT-B-32"):
        ModelConfig(name="ViT-B-33").read()


def test_a_json_that_is_missing_broken_or_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        ModelConfig(name=str(tmp_path / "nowhere.json")).read()
    for content, message in (("{", "cannot be read"), ('{"embed_dim": 1}', "lacks text_cfg, vis")):
        path = tmp_path / "model.json"
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            ModelConfig(name=str(path)).read()


def test_only_open_clips_own_text_tower_needs_captions_of_full_length() -> None:
    assert fixed_text_length(MODELS["quickgelu"]) is None
    assert fixed_text_length(MODELS["timm"]) is None
    assert fixed_text_length(read_model_json("roberta-ViT-B-32")) is None
    assert fixed_text_length(MODELS["siglip text"]) == 20
    assert fixed_text_length(read_model_json("ViT-B-16-SigLIP")) == 64


def test_open_clips_models_of_clips_paper_are_built_by_clipx_itself() -> None:
    """Shapes only, on no device: names and sizes of every parameter are open_clip's."""
    with torch.device("meta"):
        for name in ("ViT-B-32", "ViT-L-14-336", "ViT-H-14", "RN50"):
            cfg = read_model_json(name)
            ours, other = DualEncoder(cfg), reference(cfg)
            assert isinstance(ours.visual, VisionTransformer) == name.startswith("ViT")
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, other)]
            assert shapes[0] == shapes[1], name
