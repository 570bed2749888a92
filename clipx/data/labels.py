"""The label of a sample: an integer, by which losses distinguish pairs or classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipx.data.captions import probes
from clipx.data.sample import BAD_SAMPLE_ERRORS, Raw, SampleError, key_hash
from clipx.data.shards import in_threads
from clipx.data.sources.webdataset import close_shards
from clipx.types import UserError

if TYPE_CHECKING:
    from clipx.data.corpus import Corpus

_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")  # pandas writes integers with gaps as 1.0
_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")
_WORDS = {"true": 1, "false": 0}


@dataclass(frozen=True)
class LabelField:
    """name: a field of the `.json` member, `cls` for the `.cls` member, or a column of a table"""

    name: str

    def of(self, raw: Raw) -> int:
        """The label of a sample, int64. Raises SampleError if it has none that can be used."""
        try:
            return label_of(self._value(raw))
        except ValueError as error:
            if isinstance(error, SampleError):
                raise
            raise SampleError("label", f"{self.name}: {error}") from error

    def text_of(self, raw: Raw) -> str:
        """The label as text, with single spaces in place of `_` and others. Raises SampleError."""
        value = self._value(raw)
        try:
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError as error:
            raise SampleError("label", f"{self.name}: not UTF-8: {error}") from error
        text = " ".join(text.replace("_", " ").split())
        if not text or isinstance(value, list | dict):
            raise SampleError("label", f"{self.name}: {str(value)[:50]!r} is no name")
        return text

    def _value(self, raw: Raw) -> Any:
        """Raises SampleError."""
        value = raw.text.get(self.name)
        fields = dict(raw.text)
        if value is None:
            fields |= raw.json_fields
            value = fields.get(self.name)
        if value is None:
            there = ", ".join(fields) or "none"
            raise SampleError("label", f"no {self.name}; fields there: {there}")
        return value


def label_of(value: Any) -> int:
    """An integer of 64 bits is itself, also where it is written as text; True is 1 and False 0;
    other text becomes a hash of 63 bits, the same in all processes and runs. Raises ValueError."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")  # UnicodeDecodeError is a ValueError
    if isinstance(value, str):
        text = value.strip()
        if not text:
            raise ValueError("the label is empty")
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _INTEGER.fullmatch(text) is None:
            if _NUMBER.fullmatch(text):
                raise ValueError(f"{text} is a fraction, and a label is an integer or a name")
            return key_hash(text)
        value = int(text.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise ValueError(f"{str(value)[:50]!r} is not an integer, a boolean or a text")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} needs more than 64 bits; write it as a name")
    return int(value)


def check_contents(corpus: Corpus) -> list[str]:
    """Check in a part of the corpus that samples have the label and the pair that the settings
    name. Raises UserError if none has; of remote corpora, whose first shard alone is read, returns
    a message."""
    if corpus.pair is None and corpus.label_field is None:
        return []

    def fault(place: tuple[int, int]) -> SampleError | None:
        try:
            corpus.read(*place)
        except SampleError as error:
            return error
        except BAD_SAMPLE_ERRORS as error:
            return SampleError("read", str(error))
        return None

    faults = in_threads(fault, probes(corpus, every_source=True))
    close_shards()  # forked workers would inherit hundreds of open files
    if not faults or None in faults:
        return []
    settings = {}  # which setting may be the cause, by the stage of the fault
    if corpus.label_field is not None:
        settings["label"] = "data.label_field"
    if corpus.pair is not None:
        settings["image"] = "data.pair_images"
        settings["caption"] = "data.pair_texts"
    for error in faults:
        if error is None or error.stage not in settings:
            continue
        # Of many alike, the first shows what to correct.
        text = f"{settings[error.stage]}: none of {len(faults):,} samples looked at can be used"
        text += f"; the first: {error}"
        if corpus.is_remote:
            return [text]
        raise UserError(f"{text}. Correct the setting or the corpus")
    return []
