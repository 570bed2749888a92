"""Captions -> token ids, row for row those of open_clip's tokenizers. Captions are padded when a
batch is collated, up to its longest."""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipx.data.clip_bpe import ClipBPE
from clipx.data.text_repair import CLEAN, repaired
from clipx.types import UserError

_VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)


class Tokenizer(Protocol):
    """special_ids: of tokens that are no part of a caption: start, end, padding and the like"""

    pad_id: int

    @property
    def largest_id(self) -> int: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def state(self) -> str:
        """Everything that the ids depend on, as text: equal for two that encode alike."""
        ...

    def encode(self, text: str, context_length: int) -> list[int]:
        """Token ids with the start and end tokens, at most `context_length`. A caption that is too
        long keeps its end token."""
        ...


class HuggingFace:
    """A tokenizer of the transformers library, from a folder or by its name on the hub.

    mode: "", or "clips" for a class token in the last place of the whole context
    """

    def __init__(
        self,
        name: str,
        *,
        mode: str = "",
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
    ) -> None:
        self._name = name
        self._settings = (mode, clean, strip_sep_token, language)
        self._clean = CLEAN[clean]
        self._tokenizer = _read_transformers(name, language)
        self.pad_id = self._special_id("pad")
        self._stripped = self._special_id("sep") if strip_sep_token else None
        if self._stripped == self.pad_id:  # open_clip replaces it everywhere, padding included
            self.pad_id = 0
        self._clips: tuple[int, int, int] | None = None
        if mode == "clips":
            self._clips = self._special_id("bos"), self._special_id("eos"), self._special_id("cls")

    @cached_property
    def largest_id(self) -> int:
        # mT5 has a hundred further ids for its own training; SigLIP's models have no room for them.
        ids = self._tokenizer.get_vocab().items()
        return max(i for token, i in ids if "<extra_id_" not in token)

    @property
    def special_ids(self) -> frozenset[int]:
        ids = {self.pad_id, *self._tokenizer.all_special_ids}
        if self._stripped is not None:
            ids.add(0)  # which `encode` writes in place of the stripped token
        return frozenset(ids)

    @property
    def state(self) -> str:
        """The contents of the tokenizer's files, or the vocabulary of one not written in Rust."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        files = fast.to_str() if fast is not None else repr(sorted(self._tokenizer.get_vocab()))
        return f"{self._settings} {files}"

    def encode(self, text: str, context_length: int) -> list[int]:
        text = " ".join(self._clean(repaired(text)).split())
        if self._clips is not None:
            # Three places of the context are taken; that of the class token is the last.
            begin, end, class_token = self._clips
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = [begin, *ids[: context_length - 3], end]
            padding = [self.pad_id] * (context_length - 1 - len(ids))
            return [*ids, *padding, class_token]
        ids = self._tokenizer(text, truncation=True, max_length=context_length)["input_ids"]
        if self._stripped is None:
            return ids
        return [0 if i == self._stripped else i for i in ids]

    def _special_id(self, kind: str) -> int:
        """The id of the pad, sep, bos, eos or cls token. Raises UserError."""
        token = self._tokenizer.special_tokens_map.get(f"{kind}_token")
        if token is None:
            raise UserError(
                f"text_cfg.hf_tokenizer_name {self._name!r} has no {kind}_token, which these "
                "settings need; give it one in its tokenizer_config.json"
            )
        return int(self._tokenizer.convert_tokens_to_ids(token))


def _read_transformers(name: str, language: str | None) -> Any:
    """A tokenizer of the transformers library. Raises UserError."""
    from open_clip.tokenizer import HFTokenizer

    folder = Path(name)  # or a name of the hub, which is no folder
    # Without a vocabulary, transformers would build an empty tokenizer.
    if folder.is_dir() and not any((folder / file).is_file() for file in _VOCABULARY_FILES):
        raise UserError(
            f"tokenizer {name} has no vocabulary: the folder lacks all of "
            f"{', '.join(_VOCABULARY_FILES)}; save the tokenizer beside the model with "
            "tokenizer.save_pretrained(FOLDER)"
        )
    try:
        reference: Any = HFTokenizer(name)
    except ImportError as error:
        raise UserError(
            f"tokenizer {name!r} needs transformers: pip install 'clipx-train[huggingface]'"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"text_cfg.hf_tokenizer_name {name!r} cannot be read: {error}\nIt must be a folder "
            "with a transformers tokenizer or a name of the Hugging Face hub"
        ) from error
    if language is not None:
        try:
            set_language = reference.set_lang_fn
        except AttributeError as error:
            raise UserError(
                f"text_cfg.tokenizer_kwargs.language {language!r}: the tokenizer {name!r} has no "
                "setting for a language; leave it out"
            ) from error
        set_language(language)
    if reference.tokenizer.padding_side != "right":  # batches are padded here, after the captions
        raise UserError(
            f"text_cfg.hf_tokenizer_name {name!r} pads on the left; set padding_side to right in "
            "its tokenizer_config.json"
        )
    return reference.tokenizer


def build_tokenizer(text_cfg: dict[str, Any]) -> Tokenizer:
    """The tokenizer for the `text_cfg` of an open_clip model JSON. Raises UserError."""
    name = text_cfg.get("hf_tokenizer_name")
    mode = text_cfg.get("tokenizer_mode") or ""
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    settings = {key: value for key, value in kwargs.items() if value}  # open_clip has empty ones
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
        remedy = "; use clips or leave it out" if name else "; leave it out"
        raise UserError(f"text_cfg.tokenizer_mode {mode!r} is not supported for {kind}{remedy}")
    tokenizer = HuggingFace(name, mode=mode, **settings) if name else ClipBPE(**settings)
    vocab_size = text_cfg.get("vocab_size", 49408)  # open_clip's default
    # A text tower from the hub has the vocabulary of its own config.
    if not text_cfg.get("hf_model_name") and tokenizer.largest_id >= vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {tokenizer.largest_id}, and text_cfg.vocab_size is "
            f"{vocab_size}: raise it to {tokenizer.largest_id + 1}, or set "
            "text_cfg.hf_tokenizer_name to the tokenizer that belongs to this model"
        )
    return tokenizer


class CachedTokenizer:
    """A tokenizer that keeps the ids of the first `max_texts` different texts of this process, for
    a small corpus whose captions come again in each epoch."""

    def __init__(self, tokenizer: Tokenizer, max_texts: int = 1 << 18) -> None:
        self.pad_id = tokenizer.pad_id
        self._tokenizer = tokenizer
        self._max_texts = max_texts
        self._ids: dict[tuple[str, int], list[int]] = {}

    @property
    def largest_id(self) -> int:
        return self._tokenizer.largest_id

    @property
    def special_ids(self) -> frozenset[int]:
        return self._tokenizer.special_ids

    @property
    def state(self) -> str:
        return self._tokenizer.state

    def encode(self, text: str, context_length: int) -> list[int]:
        ids = self._ids.get((text, context_length))
        if ids is None:
            ids = self._tokenizer.encode(text, context_length)
            if len(self._ids) < self._max_texts:
                self._ids[text, context_length] = ids
        return ids


def pad(
    captions: list[list[int]],
    pad_id: int,
    length: int | None = None,
    *,
    multiple: int = 1,
    context_length: int | None = None,
) -> Tensor:
    """(B, T) int64. T is `length`, by default that of the longest caption, rounded up to a multiple
    (graphs are compiled for few lengths) but at most to `context_length`."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    if length is None:
        length = -(-int(lengths.max()) // multiple) * multiple
        length = min(length, context_length or length)
    out = np.full((len(captions), length), pad_id, np.int64)
    # One assignment for all rows takes two thirds of the time of one for each (1,024 captions).
    ids = np.fromiter(chain.from_iterable(captions), np.int64, int(lengths.sum()))
    out[np.arange(length) < lengths[:, None]] = ids
    return torch.from_numpy(out)
