"""open_clip's own model JSONs, one of each kind, with their structure kept and their size taken
out: for the tests of models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.models.model_json import read_model_json

CONTEXT, VOCABULARY = 16, 90
# What timm builds under the names in open_clip's JSONs, cut down.
TRUNKS: dict[str, dict[str, Any]] = {
    "vit_base_patch16_siglip_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "eva02_base_patch16_clip_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_pe_core_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_medium_patch16_gap_256": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_relpos_medium_patch16_cls_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "convnext_base": {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)},
    "fastvit_mci1": {"layers": (1, 1, 1, 2), "embed_dims": (16, 32, 64, 128)},
    "swin_base_patch4_window7_224": {
        "embed_dim": 12,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 3, 4),
    },
}
KINDS = (  # CLIP's paper, then what open_clip builds: native, timm, text of transformers
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "RN50",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
    "convnext_base",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "PE-Core-B-16",
    "swin_base_patch4_window7_224",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "bert",  # known to open_clip, in none of its JSONs
)


def small(kind: str, folder: Path) -> dict[str, Any]:
    """The JSON of a kind, with a text tower of transformers in `folder` where it has one. Its timm
    trunk is small where it is built within `small_trunks`."""
    cfg = read_model_json("roberta-ViT-B-32" if kind == "bert" else kind)
    vision, text = cfg["vision_cfg"], cfg["text_cfg"]
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 2, 1], "width": 16, "image_size": 64}
    elif not vision.get("timm_model_name"):
        vision |= {"layers": 3, "width": 64, "head_width": 32}
        vision |= {"image_size": 4 * vision["patch_size"]}
    if text.get("hf_model_name"):
        write_text_config(kind, folder)
        text |= {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    else:
        text |= {"layers": 3, "width": 48, "heads": 3, "vocab_size": VOCABULARY}
    text |= {"context_length": CONTEXT}
    return cfg | {"embed_dim": 48}  # what SigLIP's image tower gives, which has no projection


def write_text_config(kind: str, folder: Path) -> int:
    """The config.json of a small text tower of transformers, in a folder; returns its padding
    id."""
    import transformers

    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "max_position_embeddings": 2 * CONTEXT}  # fmt: skip
    t5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    nllb = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 2,
            "decoder_ffn_dim": 48, "max_position_embeddings": 2 * CONTEXT}  # fmt: skip
    made = {
        "ber": lambda: transformers.BertConfig(vocab_size=VOCABULARY, **bert),
        "rob": lambda: transformers.RobertaConfig(vocab_size=VOCABULARY, **bert),
        "xlm": lambda: transformers.XLMRobertaConfig(vocab_size=VOCABULARY, **bert),
        "mt5": lambda: transformers.MT5Config(vocab_size=VOCABULARY, **t5),
        "nll": lambda: transformers.M2M100Config(vocab_size=VOCABULARY, **nllb),
    }[kind[:3]]()
    made.save_pretrained(folder)
    return made.pad_token_id


@contextmanager
def small_trunks() -> Iterator[None]:
    """timm builds its models of `TRUNKS` small."""
    build = timm.create_model
    with mock.patch.object(timm, "create_model", lambda n, **k: build(n, **k, **TRUNKS.get(n, {}))):
        yield


def stirred(model: nn.Module) -> nn.Module:
    """Add noise to each parameter and statistic, so that a missing one changes the result."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.numel() > 1:
                noise = 0.02 * torch.randn(tensor.shape, generator=generator)
                tensor += noise.abs() if "running_var" in name else noise
    return model


def images(cfg: dict[str, Any], count: int = 4) -> Tensor:
    """Large patches of color: noise of single pixels looks all alike to a convolution."""
    size = cfg["vision_cfg"]["image_size"]
    coarse = 2 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bicubic")


def captions(
    cfg: dict[str, Any], lengths: tuple[int, ...] = (2, 5, 9, CONTEXT), pad_id: int = 0
) -> Tensor:
    """(B, CONTEXT) ids as of a tokenizer: start, words, end, padding. The end is the highest id, or
    the one that the JSON names."""
    end = VOCABULARY - 1
    if cfg["text_cfg"].get("pool_type") == "eos":
        end = cfg["text_cfg"]["eos_id"]
    generator = torch.Generator().manual_seed(len(lengths))
    text = torch.full((len(lengths), CONTEXT), pad_id, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(5, VOCABULARY - 2, (length,), generator=generator)
        text[row, 0], text[row, length - 1] = VOCABULARY - 2, end
    return text


def write_folder(cfg: dict[str, Any], folder: Path) -> str:
    """A folder as open_clip's `local-dir:`, without weights; returns the model's name."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": {k: v for k, v in cfg.items() if k != "preprocess_cfg"}}
    content["preprocess_cfg"] = cfg.get("preprocess_cfg", {})
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"
