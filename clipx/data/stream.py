"""Positions -> raw samples. A bad sample is named, quarantined and replaced; the order of all
others stays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from clipx.data import decode
from clipx.data.order import Order, corpus_digest
from clipx.data.shards import ShardIndex, expand, load_index
from clipx.types import UserError

MAX_ATTEMPTS = 64  # with half of a corpus bad, a run that needs more has a chance of 2^-64
Read = TypeVar("Read")


@dataclass(frozen=True)
class Sample:
    """One sample as stored. `captions` has at least one non-empty caption."""

    key: str
    image: bytes
    captions: list[str]


@dataclass(frozen=True)
class BadSample:
    """A line of quarantine.jsonl."""

    shard: str
    key: str
    position: int
    stage: str
    error: str
    message: str

    def record(self) -> dict[str, str | int]:
        return asdict(self)


class SampleError(ValueError):
    """A sample that cannot be used. `stage` is read, image or caption."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class Corpus:
    """The samples of a list of shards, addressed by (shard, sample) or by position in the run's
    order."""

    def __init__(
        self, shards: list[ShardIndex], *, seed: int, streams: int, window: int, caption_field: str
    ) -> None:
        self.shards = shards
        self.caption_field = caption_field
        self.order = Order([len(s) for s in shards], seed=seed, streams=streams, window=window)

    @property
    def num_samples(self) -> int:
        return self.order.epoch_samples

    @property
    def digest(self) -> str:
        return corpus_digest([(shard.path.name, shard.digest) for shard in self.shards])

    def read(self, shard: int, sample: int) -> Sample:
        """Raises SampleError."""
        index = self.shards[shard]
        image, caption_json, caption_txt = None, None, None
        for extension, offset, size in index.members(sample):
            if extension in decode.EXTENSIONS:
                image = (offset, size)
            elif extension == "json":
                caption_json = (offset, size)
            elif extension == "txt":
                caption_txt = (offset, size)
        if image is None:
            raise SampleError(
                "image", f"no image member; looked for {', '.join(decode.EXTENSIONS)}"
            )
        path = str(index.path)
        captions = (
            _json_captions(pread(path, *caption_json), self.caption_field) if caption_json else []
        )
        if not captions and caption_txt:
            captions = _clean([_utf8(pread(path, *caption_txt))])
        if not captions:
            raise SampleError(
                "caption",
                f"no caption: neither a .txt nor a .json field {self.caption_field!r} with text",
            )
        return Sample(index.keys[sample], pread(path, *image), captions)

    def usable(
        self, position: int, shard: int, sample: int, use: Callable[[Sample], Read]
    ) -> tuple[Read, str, list[BadSample]]:
        """(use(sample), its key, what was bad on the way). Bad samples give way to the position's
        replacements."""
        bad: list[BadSample] = []
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                shard, sample = self.order.replacement(position, attempt)
            index = self.shards[shard]
            try:
                found = self.read(shard, sample)
                return use(found), found.key, bad
            except (SampleError, decode.BadImage, OSError) as error:
                stage = error.stage if isinstance(error, SampleError) else "image"
                stage = "read" if isinstance(error, OSError) else stage
                name = type(error).__name__
                bad.append(
                    BadSample(
                        str(index.path), index.keys[sample], position, stage, name, str(error)
                    )
                )
        last = bad[-1]
        raise UserError(
            f"{MAX_ATTEMPTS} samples in a row cannot be used; "
            f"the last: {last.key} of {last.shard}: {last.message}. "
            "Check data.shards and data.caption_field"
        )


def open_shards(patterns: str | list[str]) -> Iterator[ShardIndex]:
    """The indexes of all shards of a pattern. Raises UserError that names every shard that cannot
    be read."""
    broken = []
    for path in expand(patterns):
        try:
            yield load_index(path)
        except UserError as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(f"shard {path} cannot be read: {error}")
    if broken:
        raise UserError("\n".join(broken))


@lru_cache(maxsize=512)
def _descriptor(path: str) -> int:
    """An open file for each shard of this process. 512 is half of the usual limit of open files."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def pread(path: str, offset: int, size: int) -> bytes:
    """One positioned read. Raises OSError where the shard has become shorter than its index
    says."""
    data = os.pread(_descriptor(path), size, offset)
    if len(data) < size:
        raise OSError(f"{path} ends at byte {offset + len(data)}, {size - len(data)} bytes early")
    return data


def key_hash(key: str) -> int:
    """63-bit hash of a sample key, the same in every process."""
    return (
        int.from_bytes(hashlib.sha1(key.encode("utf-8", "surrogateescape")).digest()[:8], "big")
        >> 1
    )


def corpus_name(shards: list[ShardIndex]) -> str:
    """For messages: how many shards, and the folder of the first."""
    return f"{len(shards)} shards of {Path(shards[0].path).parent}"


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleError("caption", f"not UTF-8: {error}") from error


def _json_captions(data: bytes, field: str) -> list[str]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise SampleError("caption", f"the .json member does not parse: {error}") from error
    found = value.get(field) if isinstance(value, dict) else None
    texts = found if isinstance(found, list) else [found]
    return _clean([text for text in texts if isinstance(text, str)])


def _clean(texts: list[str]) -> list[str]:
    return [text.strip() for text in texts if text.strip()]
