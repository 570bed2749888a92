"""Text -> token ids, one list per caption, as open_clip's tokenizers make them. Padding is added
when a batch is collated, up to its longest caption."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipx.data.byte_pairs import merge
from clipx.data.huggingface_tokenizer import HuggingFace
from clipx.data.repair import CLEAN, repaired
from clipx.types import UserError


class Tokenizer(Protocol):
    pad_id: int

    @property
    def state(self) -> str:
        """All that its ids depend on, as text: equal for two that encode alike."""
        ...

    def encode(self, text: str, context_length: int) -> list[int]:
        """Token ids with the start and end tokens, at most `context_length`; a cut caption keeps
        its end token."""
        ...


class ClipBPE:
    """OpenAI's byte-pair encoding, token for token as open_clip's SimpleTokenizer, with everything
    between two spaces looked up once: no token of it spans a space."""

    pad_id = 0
    start, end, largest_id = 49406, 49407, 49407
    most_characters = 2**16
    """Of one word that are looked at: two thousand tokens of the longest kind."""

    def __init__(self, clean: str = "lower") -> None:
        self._clean, self._clean_name = CLEAN[clean], clean
        self._ids = _IdsOfWords()

    @property
    def state(self) -> str:
        return f"ClipBPE {self._clean_name}"

    def encode(self, text: str, context_length: int) -> list[int]:
        ids = [self.start]
        for word in self._clean(repaired(text)).split():
            # Merges reach over some dozen characters, so this cut leaves the first ids as they are.
            ids += self._ids[word[: self.most_characters]]
            if len(ids) >= context_length:
                break
        del ids[context_length - 1 :]
        ids.append(self.end)
        return ids


class _IdsOfWords(dict[str, list[int]]):
    """Of any text without whitespace. What is looked up is remembered, within bounds."""

    most_words = 2**18  # 80 MB; noise words would fill the memory of a months-long run
    longest_word = 64  # characters; longer ones are addresses and the like, seldom met twice

    @cached_property
    def _reference(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    @cached_property
    def _joined(self) -> dict[int, int]:
        """Ids of two symbols, `first << 16 | second` -> id of both as one. Ids count up in the
        order in which pairs were learned."""
        id_of = self._reference.encoder
        return {id_of[a] << 16 | id_of[b]: id_of[a + b] for a, b in self._reference.bpe_ranks}

    @cached_property
    def _byte_ids(self) -> list[int]:
        return [self._reference.encoder[self._reference.byte_encoder[b]] for b in range(256)]

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= self.most_words:
            self.clear()
        if word.isalpha() or (tokens := self._reference.pat.findall(word)) == [word]:
            ids = self._merged(word)
        else:
            ids = [i for token in tokens for i in self[token]]
        if len(word) <= self.longest_word:
            self[word] = ids
        return ids

    def _merged(self, token: str) -> list[int]:
        if token in ("<start_of_text>", "<end_of_text>"):
            return [self._reference.encoder[token]]
        byte_ids = self._byte_ids
        ids = [byte_ids[byte] for byte in token.encode()]
        ids[-1] += 256  # the same byte at the end of a word
        return merge(ids, self._joined)


def build_tokenizer(text_cfg: dict[str, Any]) -> Tokenizer:
    """The tokenizer that an open_clip model JSON's `text_cfg` asks for. Raises UserError."""
    name, mode = text_cfg.get("hf_tokenizer_name"), text_cfg.get("tokenizer_mode") or ""
    settings = {k: v for k, v in (text_cfg.get("tokenizer_kwargs") or {}).items() if v}
    known = {"clean", "strip_sep_token", "language"} if name else {"clean"}
    kind = "a Hugging Face tokenizer" if name else "CLIP's own tokenizer"
    for key in set(settings) - known:
        raise UserError(
            f"text_cfg.tokenizer_kwargs.{key} {settings[key]!r} is not supported for {kind}, "
            f"which has {', '.join(sorted(known))}; a caption that is too long is cut at its end"
        )
    if settings.get("clean", "lower") not in CLEAN:
        raise UserError(
            f"text_cfg.tokenizer_kwargs.clean {settings['clean']!r} is none of {', '.join(CLEAN)}"
        )
    if mode not in ("", "clips") or (mode and not name):
        raise UserError(
            f"text_cfg.tokenizer_mode {mode!r} is not supported for {kind}"
            + ("; there is clips" if name else "")
        )
    if name:
        tokenizer = HuggingFace(name, mode=mode, **settings)
    else:
        tokenizer = ClipBPE(**settings)
    vocab_size = text_cfg.get("vocab_size", 49408)
    if not text_cfg.get("hf_model_name") and tokenizer.largest_id >= vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.largest_id}, and text_cfg.vocab_size is "
            f"{vocab_size}: raise it to {tokenizer.largest_id + 1}, or set "
            "text_cfg.hf_tokenizer_name to the tokenizer that belongs to this model"
        )
    return tokenizer


def pad(
    captions: list[list[int]],
    pad_id: int,
    length: int | None = None,
    *,
    multiple: int = 1,
    context_length: int | None = None,
) -> Tensor:
    """(B, T) int64. T is `length`; by default that of the longest caption, rounded up to a
    multiple (compiled graphs are made for few lengths) but to `context_length` at most."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    if length is None:
        length = -(-int(lengths.max()) // multiple) * multiple
        length = min(length, context_length or length)
    out = np.full((len(captions), length), pad_id, np.int64)
    ids = np.fromiter(chain.from_iterable(captions), np.int64, int(lengths.sum()))
    out[np.arange(length) < lengths[:, None]] = ids
    return torch.from_numpy(out)
