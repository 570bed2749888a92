"""Any of open_clip's configs: open_clip builds its model, clipx builds its own of the same JSON,
weights go both ways, and embeddings are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from small_models import KINDS, captions, images, small, small_trunks, stirred, write_folder
from torch import nn

from clipx.models.dual_encoder import DualEncoder
from clipx.models.initial.checkpoint import Checkpoint
from clipx.models.model_json import fixed_text_length, read_model_json
from clipx.models.text_transformer import TextTransformer
from clipx.models.vit import VisionTransformer

pytest.importorskip("transformers")
OWN_VISION = {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-H-14-worldwide", "bert"} | {
    kind for kind in KINDS if "bert" in kind or "mt5" in kind or "nllb" in kind
}
PAPERS_TEXT = {"ViT-B-32", "ViT-B-32-quickgelu", "RN50", "convnext_base", "EVA02-B-16"} | {
    "PE-Core-B-16",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
}


def both(kind: str, folder: Path) -> tuple[DualEncoder, nn.Module, dict[str, Any]]:
    """clipx's and open_clip's model of one JSON, with weights of their own."""
    name = write_folder(small(kind, folder / "text"), folder / "model")
    cfg = read_model_json(name)
    with small_trunks():
        reference = open_clip.create_model(name, load_weights=False, pretrained_text=False)
        ours = DualEncoder(cfg)
    return stirred(ours).eval(), stirred(reference).eval(), cfg


@torch.no_grad()
def assert_same_embeddings(ours: DualEncoder, reference: nn.Module, cfg: dict[str, Any]) -> None:
    image = images(cfg)
    text = captions(cfg, pad_id=1 if "hf_model_name" in cfg["text_cfg"] else 0)
    pairs = [
        (ours.encode_image(image), reference.encode_image(image, normalize=True)),
        (ours.encode_text(text), reference.encode_text(text, normalize=True)),
    ]
    for value, expected in pairs:
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
        assert (value[0] - value[1]).norm() > 1e-3, (
            "rows must differ for this test to show anything"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_both_ways_and_embeddings_stay(kind: str, tmp_path: Path) -> None:
    ours, reference, cfg = both(kind, tmp_path)
    assert isinstance(ours.visual, VisionTransformer) == (kind in OWN_VISION)
    assert isinstance(ours.text, TextTransformer) == (kind in PAPERS_TEXT)
    # theirs into ours, by a file
    save_file(
        {k: v.contiguous() for k, v in reference.state_dict().items()}, tmp_path / "w.safetensors"
    )
    initial = Checkpoint(str(tmp_path / "w.safetensors"))
    initial.prepare()
    assert initial.load(ours) == []
    assert_same_embeddings(ours, reference, cfg)
    # ours into theirs; CLIP, unlike CustomTextCLIP, has the text tower at its top
    stirred(ours)
    weights: dict[str, Any] = ours.state_dict()
    if isinstance(reference, open_clip.CLIP):
        weights = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    reference.load_state_dict(weights)
    assert_same_embeddings(ours, reference, cfg)


def test_twelve_kinds_and_more_are_covered() -> None:
    assert len(KINDS) >= 12
    assert {fixed_text_length(read_model_json(k)) for k in KINDS if k != "bert"} >= {None, 64, 77}


@pytest.mark.slow
def test_every_json_of_open_clip_has_the_same_parameters_here() -> None:
    """Names and shapes, on no device. Those with a text tower of the hub would have to ask it."""
    with torch.device("meta"):
        for name in open_clip.list_models():
            if "multimodal_cfg" in (open_clip.get_model_config(name) or {}):
                continue
            cfg = read_model_json(name)
            if "hf_model_name" in cfg["text_cfg"]:
                continue
            settings = {k: v for k, v in cfg.items() if k != "custom_text"}
            models = (DualEncoder(cfg), open_clip.CustomTextCLIP(**settings))
            shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in models]
            assert shapes[0] == shapes[1], name
