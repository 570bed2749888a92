"""Text -> token ids, one list per caption. Padding is added when a batch is collated, up to its
longest caption."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clipx.types import UserError


class Tokenizer(Protocol):
    pad_id: int

    def encode(self, text: str, context_length: int) -> list[int]:
        """Token ids with the start and end tokens, at most `context_length`; a cut caption keeps
        its end token."""
        ...


class ClipBPE:
    """OpenAI's byte-pair encoding, token for token as open_clip's SimpleTokenizer, with every word
    looked up once.

    SimpleTokenizer repairs Unicode and splits with a Unicode regular expression for each caption.
    On printable ASCII without `&` (no HTML entity) the repair changes nothing and a plain regular
    expression splits alike.
    """

    pad_id = 0
    _ascii = re.compile(r"[ -%'-~\t\n]*")
    _words = re.compile(
        r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
    )

    def __init__(self) -> None:
        self._ids: dict[str, list[int]] = {}

    @cached_property
    def _reference(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    def encode(self, text: str, context_length: int) -> list[int]:
        if self._ascii.fullmatch(text):
            ids = [i for word in self._words.findall(text.lower()) for i in self._word(word)]
        else:
            ids = self._reference.encode(text)
        start, end = self._reference.sot_token_id, self._reference.eot_token_id
        return [start, *ids[: context_length - 2], end]

    def _word(self, word: str) -> list[int]:
        ids = self._ids.get(word)
        if ids is None:
            if (
                len(self._ids) >= 1_000_000
            ):  # noise words would fill the memory of a months-long run
                self._ids.clear()
            pieces = self._reference.bpe(word).split(" ")
            ids = self._ids[word] = [self._reference.encoder[piece] for piece in pieces]
        return ids


class HuggingFace:
    """A tokenizer of the transformers library, from a folder or a hub name."""

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise UserError(
                f"tokenizer {name!r} needs transformers: pip install 'clipx[huggingface]'"
            ) from error
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
        self._tokenizer = tokenizer
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def encode(self, text: str, context_length: int) -> list[int]:
        return self._tokenizer(text, truncation=True, max_length=context_length)["input_ids"]


def build_tokenizer(text_cfg: dict[str, Any]) -> Tokenizer:
    """The tokenizer that an open_clip model JSON's `text_cfg` asks for."""
    name = text_cfg.get("hf_tokenizer_name")
    if name is None:
        unsupported = {"tokenizer_mode", "tokenizer_kwargs"} & {k for k, v in text_cfg.items() if v}
        if unsupported:
            raise UserError(
                f"the model's tokenizer settings {sorted(unsupported)} are not supported yet"
            )
        return ClipBPE()
    return HuggingFace(str(Path(name)) if Path(name).is_dir() else name)


def pad(captions: list[list[int]], pad_id: int, length: int | None = None) -> Tensor:
    """(B, T) int64 with T = `length`, by default that of the longest caption."""
    length = length or max(map(len, captions))
    return torch.tensor(
        [ids + [pad_id] * (length - len(ids)) for ids in captions], dtype=torch.int64
    )
