"""A tiny timm trunk and a tiny random BERT with its tokenizer, in a folder as transformers wants
it: for the tests of locked towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a picture number longer caption of red green blue gray"
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def write_bert(folder: Path) -> Path:
    """A BERT of one layer and 16 dimensions."""
    from transformers import BertConfig, BertModel

    words = [*VOCABULARY.split(), *DIGITS[:10], *(f"##{c}" for c in DIGITS), *DIGITS[11:]]
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    content = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return folder


def model_json(bert: Path, **vision: Any) -> dict[str, Any]:
    """Both towers with trunks to lock and MLP heads; pixels as EfficientNet-lite0 wants them."""
    return {
        "embed_dim": 12,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "test_efficientnet",
            "timm_pool": "avg",
            "timm_proj": "mlp",
            **vision,
        },
        "text_cfg": {
            "context_length": 20,
            "hf_model_name": str(bert),
            "hf_model_pretrained": False,
            "hf_tokenizer_name": str(bert),
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.125]},
    }


LOCKED = ["visual.trunk", "text.transformer"]
