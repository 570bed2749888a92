"""Cutting a batch's padding changes no embedding, for each kind of text tower; and where it would,
fixed_text_length says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from small_models import VOCABULARY, write_text_config
from torch import Tensor

from clipx.data.tokenizers import pad
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import fixed_text_length, read_model_json
from clipx.models.text_transformer import TextTransformer

CONTEXT = 24
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
SMALL = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2}
SIGLIP = read_model_json("ViT-B-16-SigLIP")["text_cfg"] | SMALL
CLIPA = read_model_json("ViT-L-14-CLIPA")["text_cfg"] | SMALL
COCA = SMALL | {"embed_cls": True, "output_tokens": True}


def encoder(text_cfg: dict[str, Any]) -> DualEncoder:
    """With noise on each parameter, so that positions and tokens matter."""
    torch.manual_seed(0)
    model = DualEncoder({"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text_cfg})
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def captions(count: int, longest: int = 11) -> list[list[int]]:
    """From 2 tokens to `longest`: start, words, end (the highest id). None is a padding id."""
    generator = torch.Generator().manual_seed(count)
    lengths = [2 + i % (longest - 1) for i in range(count)]
    words = [torch.randint(5, VOCABULARY - 2, (n - 2,), generator=generator) for n in lengths]
    return [[VOCABULARY - 2, *row.tolist(), VOCABULARY - 1] for row in words]


@torch.no_grad()
def embedded(model: DualEncoder, text: Tensor) -> Tensor:
    return model.encode_text(text)


def assert_trimming_is_free(model: DualEncoder, pad_id: int, count: int = 12) -> None:
    rows = captions(count)
    padded = embedded(model, pad(rows, pad_id, CONTEXT))
    assert padded.isfinite().all()
    assert (padded[0] - padded[1]).norm() > 1e-3, "rows must differ for this test to show anything"
    for multiple in (1, 8):
        trimmed = pad(rows, pad_id, multiple=multiple, context_length=CONTEXT)
        assert trimmed.shape[1] == {1: 11, 8: 16}[multiple]
        # unit rows; float32 rounding through two blocks is some 1e-7
        torch.testing.assert_close(embedded(model, trimmed), padded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [12, 256])
@pytest.mark.parametrize("extra", [{}, {"ls_init_value": 0.3, "mlp_ratio": 2.0}])
def test_a_causal_tower_read_at_the_end_token_may_be_trimmed(
    extra: dict[str, Any], count: int
) -> None:
    text_cfg = SMALL | extra
    assert fixed_text_length({"text_cfg": text_cfg}) is None
    assert_trimming_is_free(encoder(text_cfg), 0, count)


@pytest.mark.parametrize(
    "extra",
    [
        {"pool_type": "eos", "eos_id": VOCABULARY - 1, "hf_tokenizer_name": "any"},
        {"proj_bias": True},
        {"qk_norm": True, "scale_fc": True},
        {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}},
        {"output_tokens": True, "proj_type": "none", "width": 16},
    ],
    ids=["eos", "bias", "custom blocks", "activation", "tokens"],
)
def test_a_causal_tower_of_open_clip_may_be_trimmed(extra: dict[str, Any]) -> None:
    """Its mask is cut to the captions. What has no projection reads as many columns."""
    text_cfg = SMALL | extra
    model = encoder(text_cfg)
    assert isinstance(model.text, open_clip.transformer.TextTransformer)
    assert fixed_text_length({"text_cfg": text_cfg}) is None
    assert_trimming_is_free(model, 0)


def test_the_end_token_is_the_highest_id_for_clips_own_tokenizer_only() -> None:
    """Read at the highest id, a tower may meet a padding id above it."""
    text_cfg = SMALL | {"hf_tokenizer_name": "any"}
    assert fixed_text_length({"text_cfg": text_cfg}) == CONTEXT
    with pytest.raises(AssertionError, match="not close"):
        assert_trimming_is_free(encoder(text_cfg | {"vocab_size": VOCABULARY + 1}), VOCABULARY)


@pytest.mark.parametrize(
    "spelled",
    [
        {"no_causal_mask": False, "pool_type": "argmax", "pad_id": 0, "proj_bias": False},
        {"tokenizer_kwargs": {"clean": "canonicalize"}, "output_tokens": True, "eos_id": 7},
    ],
)
def test_a_json_that_spells_out_defaults_gets_our_own_tower(
    spelled: dict[str, Any],
) -> None:
    assert isinstance(encoder(SMALL | spelled).text, TextTransformer)


def hugging_face(folder: Path, pooler: str) -> dict[str, Any]:
    return {
        "context_length": CONTEXT,
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_model_pretrained": False,
        "hf_pooler_type": pooler,
        "hf_proj_type": "linear",
    }


@pytest.mark.parametrize(
    ("kind", "pooler", "pad_id"),
    [
        ("bert", "mean_pooler", 0),
        ("bert", "cls_pooler", 0),
        ("bert", "cls_last_hidden_state_pooler", 0),
        ("roberta", "mean_pooler", 1),
        ("xlm-roberta", "mean_pooler", 1),
        ("mt5", "mean_pooler", 0),
        ("nllb", "cls_last_hidden_state_pooler", 1),
    ],
)
def test_a_masked_tower_of_transformers_may_be_trimmed(
    kind: str, pooler: str, pad_id: int, tmp_path: Path
) -> None:
    assert write_text_config(kind, tmp_path) == pad_id
    text_cfg = hugging_face(tmp_path, pooler)
    assert fixed_text_length({"text_cfg": text_cfg}) is None
    assert_trimming_is_free(encoder(text_cfg), pad_id)


def test_a_tower_of_transformers_with_another_tokenizer_is_not_trimmed(tmp_path: Path) -> None:
    """The padding of the other one is attended to."""
    pad_id = write_text_config("roberta", tmp_path)
    text_cfg = hugging_face(tmp_path, "mean_pooler")
    others: list[str | None] = [None, str(tmp_path / "other")]
    for other in others:
        cfg = {"text_cfg": text_cfg | {"hf_tokenizer_name": other}}
        assert fixed_text_length(cfg) == CONTEXT
    with pytest.raises(AssertionError, match="not close"):
        assert_trimming_is_free(encoder(text_cfg), pad_id + 1)


@pytest.mark.parametrize(
    "text_cfg",
    [
        SIGLIP,
        CLIPA,
        SMALL | {"no_causal_mask": True},
        SMALL | {"no_causal_mask": True, "pool_type": "first"},
        SMALL | {"no_causal_mask": False, "pool_type": "last"},
        COCA,
    ],
    ids=["SigLIP", "CLIPA", "argmax, no mask", "first, no mask", "last", "CoCa"],
)
def test_captions_keep_their_full_length_if_padding_changes_embeddings(
    text_cfg: dict[str, Any],
) -> None:
    assert fixed_text_length({"text_cfg": text_cfg}) == CONTEXT
    # Cut, they would have other embeddings, or open_clip's mask would not fit.
    with pytest.raises((AssertionError, RuntimeError), match=r"not close|size|shape"):
        assert_trimming_is_free(encoder(text_cfg), 0)
