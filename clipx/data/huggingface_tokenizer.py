"""Tokenizers of the transformers library, row for row as open_clip's HFTokenizer."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from clipx.data.repair import CLEAN, repaired
from clipx.types import UserError

_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
"""One of these holds the vocabulary. Without any, transformers builds an empty tokenizer."""


class HuggingFace:
    """From a folder or a hub name."""

    def __init__(
        self,
        name: str,
        *,
        mode: str = "",
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
    ) -> None:
        """mode: "", or "clips" for a class token in the last place of the whole context"""
        self._name, self._clips, self._clean = name, mode == "clips", CLEAN[clean]
        self._settings = (mode, clean, strip_sep_token, language)
        self._tokenizer = _read_transformers(name, language)
        self.pad_id = self._special("pad")
        self._stripped: int | None = self._special("sep") if strip_sep_token else None
        if self._stripped == self.pad_id:
            self.pad_id = 0
        if self._clips:
            self._begin, self._end, self._class = map(self._special, ("bos", "eos", "cls"))

    @cached_property
    def largest_id(self) -> int:
        # mT5 has a hundred more for its own training; SigLIP's models have no room for them.
        ids = self._tokenizer.get_vocab().items()
        return max(i for token, i in ids if "<extra_id_" not in token)

    @property
    def state(self) -> str:
        """The files' contents where the library can say them, else the vocabulary."""
        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        files = fast.to_str() if fast is not None else repr(sorted(self._tokenizer.get_vocab()))
        return f"{self._settings} {files}"

    def encode(self, text: str, context_length: int) -> list[int]:
        text = " ".join(self._clean(repaired(text)).split())
        if self._clips:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = [self._begin, *ids[: context_length - 3], self._end]
            return [*ids, *[self.pad_id] * (context_length - 1 - len(ids)), self._class]
        ids = self._tokenizer(text, truncation=True, max_length=context_length)["input_ids"]
        return ids if self._stripped is None else [0 if i == self._stripped else i for i in ids]

    def _special(self, kind: str) -> int:
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

    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _FILES):
        raise UserError(
            f"tokenizer {name} has no vocabulary: the folder lacks all of {', '.join(_FILES)}; "
            "save the tokenizer beside the model with tokenizer.save_pretrained(FOLDER)"
        )
    try:
        reference: Any = HFTokenizer(name)
    except ImportError as error:
        raise UserError(
            f"tokenizer {name!r} needs transformers: pip install 'clipx[huggingface]'"
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
                f"text_cfg.tokenizer_kwargs.language {language!r}: the tokenizer {name!r} is not "
                "one that is told the language; leave it out"
            ) from error
        set_language(language)
    if reference.tokenizer.padding_side != "right":
        raise UserError(
            f"text_cfg.hf_tokenizer_name {name!r} pads on the left; set padding_side to right in "
            "its tokenizer_config.json"
        )
    return reference.tokenizer
