"""Rows are those of open_clip.get_tokenizer, for each kind of tokenizer of the transformers
library."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import open_clip
import pytest
from texts import PIECES, SENTENCES, WORDS, fuzzed

from clipx.data.tokenizers import build_tokenizer, pad
from clipx.types import UserError

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")


def write_bert(folder: Path) -> None:
    """Word pieces between [CLS] and [SEP]; pads with 0."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=250, special_tokens=special)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[MASK]"}
    save(tokenizer, trainer, "[CLS] $A [SEP]", folder, names | {"eos": "[SEP]"})


def write_t5(folder: Path) -> None:
    """Sentence pieces and </s>, which pads too, as in SigLIP."""
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    save(tokenizer, trainer, "$A </s>", folder, {"pad": "</s>", "eos": "</s>", "unk": "<unk>"})


def write_roberta(folder: Path) -> None:
    """Pairs of bytes between <s> and </s>; pads with 1."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    names = {"pad": "<pad>", "bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
    save(tokenizer, trainer, "<s> $A </s>", folder, names | {"unk": "<unk>"})


def save(tokenizer: Any, trainer: Any, template: str, folder: Path, names: dict[str, str]) -> None:
    """Trained on a few words, with the names of its special tokens by their kinds."""
    tokenizer.train_from_iterator([*WORDS.split(), WORDS, *SENTENCES], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template,
        special_tokens=[(w, tokenizer.token_to_id(w)) for w in template.split() if w != "$A"],
    )
    named = {f"{kind}_token": token for kind, token in names.items()}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    wrapped.save_pretrained(folder)


WRITERS = {"bert": write_bert, "t5": write_t5, "roberta": write_roberta}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "CLIPA": ("bert", {"tokenizer_kwargs": {"strip_sep_token": True}}),
    "CLIPS": ("bert", {"tokenizer_mode": "clips"}),
    "t5": ("t5", {}),
    "SigLIP": ("t5", {"tokenizer_kwargs": {"clean": "canonicalize"}}),
    "roberta": ("roberta", {}),
    "roberta, lower case": ("roberta", {"tokenizer_kwargs": {"clean": "lower"}}),
    "roberta, stripped": ("roberta", {"tokenizer_kwargs": {"strip_sep_token": True}}),
    "roberta, CLIPS": ("roberta", {"tokenizer_mode": "clips"}),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_open_clips(case: str, tmp_path: Path) -> None:
    kind, settings = CASES[case]
    WRITERS[kind](tmp_path)
    text_cfg = {"hf_tokenizer_name": str(tmp_path), **settings}
    config = {"model_cfg": {"text_cfg": text_cfg}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    reference = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    ours = build_tokenizer(text_cfg)
    draw = random.Random(0)
    texts = [*PIECES, *SENTENCES, WORDS, *(fuzzed(draw) for _ in range(200))]
    for context_length in (8, 40):
        rows = pad([ours.encode(t, context_length) for t in texts], ours.pad_id, context_length)
        assert rows.tolist() == reference(texts, context_length).tolist()


def test_a_separator_that_also_pads_is_stripped_from_the_padding(tmp_path: Path) -> None:
    WRITERS["bert"](tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "[SEP]"}))
    text_cfg = {"hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": {"strip_sep_token": True}}
    reference = open_clip.tokenizer.HFTokenizer(str(tmp_path), strip_sep_token=True)
    ours = build_tokenizer(text_cfg)
    assert ours.pad_id == 0
    assert pad([ours.encode("a cat", 9)], 0, 9).tolist() == reference("a cat", 9).tolist()


def test_a_language_is_set_where_the_tokenizer_has_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["roberta"](tmp_path)
    text_cfg = {"hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": {"language": "fra_Latn"}}
    with pytest.raises(UserError, match=r"language 'fra_Latn'.* leave it out"):
        build_tokenizer(text_cfg)
    languages: list[str] = []
    monkeypatch.setattr(
        transformers.PreTrainedTokenizerFast,
        "set_src_lang_special_tokens",
        lambda self, language: languages.append(language),
        raising=False,
    )
    build_tokenizer(text_cfg)
    assert languages == ["fra_Latn"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tokenizer_kwargs": {"reduction_mask": "random"}}, "reduction_mask 'random' is not supp"),
        ({"tokenizer_kwargs": {"strip_sep_token": True}}, r"has no sep_token"),
        ({"tokenizer_mode": "clips"}, r"has no bos_token"),
        (
            {"tokenizer_mode": "bert_clips"},
            r"tokenizer_mode 'bert_clips' .* use clips or leave it out",
        ),
        ({"vocab_size": 100}, r"text_cfg.vocab_size is 100"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    settings: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    WRITERS["t5"](tmp_path)
    with pytest.raises(UserError, match=complaint):
        build_tokenizer({"hf_tokenizer_name": str(tmp_path), **settings})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"padding_side": "left"}, "pads on the left"), ({"pad_token": None}, "has no pad_token")],
)
def test_a_tokenizer_that_cannot_pad_at_the_end_is_refused(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    WRITERS["bert"](tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=complaint):
        build_tokenizer({"hf_tokenizer_name": str(tmp_path)})


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    # transformers would make an empty tokenizer of the kind that the config names.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match=r"has no vocabulary: the folder lacks all of tokenizer"):
        build_tokenizer({"hf_tokenizer_name": str(tmp_path)})
    with pytest.raises(UserError, match=r"hf_tokenizer_name 'no/where' cannot be read"):
        build_tokenizer({"hf_tokenizer_name": "no/where"})


def test_the_vocabulary_is_held_against_the_models(tmp_path: Path) -> None:
    """By the largest id; a tower of transformers brings a size of its own."""
    WRITERS["t5"](tmp_path)
    text_cfg = {"hf_tokenizer_name": str(tmp_path)}
    largest = max(transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab().values())
    build_tokenizer(text_cfg | {"vocab_size": largest + 1})
    with pytest.raises(UserError, match=f"raise it to {largest + 1}"):
        build_tokenizer(text_cfg | {"vocab_size": largest})
    build_tokenizer(text_cfg | {"vocab_size": largest, "hf_model_name": str(tmp_path)})


def test_mt5s_unused_tokens_need_no_place_in_the_vocabulary(tmp_path: Path) -> None:
    """The tokenizer of open_clip's ViT-B-16-SigLIP-i18n-256 has a hundred ids more than its
    model."""
    WRITERS["t5"](tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    size = len(tokenizer)
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(3)])
    tokenizer.save_pretrained(tmp_path)
    build_tokenizer({"hf_tokenizer_name": str(tmp_path), "vocab_size": size})
