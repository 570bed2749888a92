"""Tokens are open_clip's and transformers' own, for any text."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from clipx.data.tokenizers import ClipBPE, build_tokenizer, pad
from clipx.types import UserError

OURS, THEIRS = ClipBPE(), SimpleTokenizer()
START, END = THEIRS.sot_token_id, THEIRS.eot_token_id

# Pieces that meet every branch: the ASCII fast path, its exceptions, repair, entities, specials.
PIECES = [
    *["a photo of a cat", "DON'T", "I'll've", "it's", "'s", "''", "rock'n'roll", "x'd", "12 345"],
    *["<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<|endoftext|>", "http://a.b/c?d=e#f"],
    *["&amp;", "&amp;amp;", "&lt;b&gt;", "&", "AT&T", "&#39;s", "&nbsp;", "3.14", "!?..."],
    *["caf\xe9", "na\xefve", "\u732b", "\U0001f600", "\xbd", "\u0663", "\ufb01sh", "sch\xc3\xb6n"],
    *["\u2019s", "\u201cquoted\u201d", "\u0130", "\u200b", "\xa0", "\u3000"],
    *["\t", "\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x00", "\x1b[31m", "\x7f", "  ", "_a_", ""],
    *["\\", "~`^", "#$%"],
]  # fmt: skip
TEXTS = st.one_of(
    st.text(string.printable, max_size=60),
    st.text(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
)


def theirs(text: str, context_length: int) -> list[int]:
    return THEIRS(text, context_length)[0].tolist()


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, context_length=st.integers(2, 77))
def test_tokens_are_open_clips(text: str, context_length: int) -> None:
    ids = OURS.encode(text, context_length)
    assert pad([ids], OURS.pad_id, context_length)[0].tolist() == theirs(text, context_length)


@pytest.mark.parametrize("piece", PIECES)
def test_each_kind_of_text_has_open_clips_tokens(piece: str) -> None:
    for text in (piece, f"a{piece}b", f"{piece} {piece}", piece.upper()):
        assert pad([OURS.encode(text, 77)], OURS.pad_id, 77)[0].tolist() == theirs(text, 77)


def test_every_early_character_has_open_clips_tokens() -> None:
    texts = [f"x{chr(i)}y {chr(i)}1" for i in range(0x180)]
    assert pad([OURS.encode(text, 77) for text in texts], OURS.pad_id, 77).equal(THEIRS(texts))


@pytest.mark.parametrize("text", ["word " * 100, "\xe9t\xe9 " * 100])
def test_a_long_caption_is_cut_and_keeps_its_end_token(text: str) -> None:
    ids = OURS.encode(text, 20)
    assert len(ids) == 20
    assert (ids[0], ids[-1]) == (START, END)
    assert ids[:-1] == OURS.encode(text, 77)[:19]


def test_pad_fills_to_the_longest_or_to_a_length() -> None:
    assert torch.equal(pad([[1, 2], [3, 4, 5]], 0), torch.tensor([[1, 2, 0], [3, 4, 5]]))
    assert torch.equal(pad([[1, 2]], 9, 4), torch.tensor([[1, 2, 9, 9]]))


@pytest.fixture
def word_level(tmp_path: Path) -> Path:
    """The folder of a transformers tokenizer with five words."""
    pytest.importorskip("transformers")
    words = ["<pad>", "<s>", "</s>", "<unk>", "cat"]
    vocabulary = {word: i + 3 for i, word in enumerate(words)}  # a pad_id that is not 0
    special = [{"id": i + 3, "content": w, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i, w in enumerate(words[:4])]  # fmt: skip
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "</s>", "type_id": 0}}]  # fmt: skip
    tokens = {w: {"id": w, "ids": [vocabulary[w]], "tokens": [w]} for w in ("<s>", "</s>")}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": template,
                           "special_tokens": tokens},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>",
                "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_a_transformers_tokenizer_is_used_from_its_folder(word_level: Path) -> None:
    tokenizer = build_tokenizer({"hf_tokenizer_name": str(word_level)})
    assert tokenizer.pad_id == 3
    assert tokenizer.encode("cat dog", 77) == [4, 7, 6, 5]
    assert tokenizer.encode("cat " * 20, 4) == [4, 7, 7, 5]


def test_tokenizer_settings_that_are_not_known_are_refused() -> None:
    assert isinstance(build_tokenizer({"context_length": 77}), ClipBPE)
    with pytest.raises(UserError, match=r"\['tokenizer_kwargs'\] are not supported"):
        build_tokenizer({"tokenizer_kwargs": {"clean": "canonicalize"}})
