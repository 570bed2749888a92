"""The table of one tar shard: which samples it has, and where the members of each lie.

A shard is a plain WebDataset tar: members of one sample stand together and share the name up to the
first dot (`0001.png`, `0001.txt`, `0001.json`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipx.data.decode import EXTENSIONS
from clipx.data.tar import Member, list_members
from clipx.types import UserError


class NotATar(UserError):
    """A file that has no sample to offer."""


@dataclass(frozen=True)
class Head:
    """What is known of a shard without its samples.

    digest: `layout:content`. The layout is a SHA-1 over keys and byte ranges, the content one over
    the first and last 2 KiB of each member
    truncated: the tar ends early; the samples before the break are all there
    damage: what else is wrong with the tar, "" where nothing is; the samples listed are good
    second_images: samples with more than one image, of which one is used
    """

    samples: int
    digest: str
    truncated: bool
    damage: str = ""
    second_images: int = 0


@dataclass(frozen=True)
class ShardIndex:
    """The table of one shard. Sample i has the members `start[i]:start[i + 1]`.

    start: (N + 1,); offsets, sizes: (M,) bytes; extensions: (M,) places in `names`
    key_start: (N + 1,) where in the bytes `key_bytes` the key of a sample begins
    duplicate: (N,) True where the shard has an earlier sample of this key
    """

    head: Head
    names: tuple[str, ...]
    start: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    extensions: np.ndarray
    key_start: np.ndarray
    key_bytes: np.ndarray
    duplicate: np.ndarray

    def __len__(self) -> int:
        return self.head.samples

    def key(self, sample: int) -> str:
        begin, end = self.key_start[sample], self.key_start[sample + 1]
        return self.key_bytes[begin:end].tobytes().decode("utf-8", "surrogateescape")

    @property
    def keys(self) -> list[str]:
        return [self.key(sample) for sample in range(len(self))]

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of one sample."""
        rows = slice(self.start[sample], self.start[sample + 1])
        extensions = self.extensions[rows].tolist()
        ranges = zip(
            extensions, self.offsets[rows].tolist(), self.sizes[rows].tolist(), strict=True
        )
        return [(self.names[e], offset, size) for e, offset, size in ranges]


def build_index(path: Path, descriptor: int | None = None) -> ShardIndex:
    """Walk the tar headers once. Raises NotATar and OSError."""
    if descriptor is None:
        with path.open("rb") as file:
            return build_index(path, file.fileno())
    listing = list_members(descriptor)
    members = listing.members
    if not members and (listing.truncated or listing.damage):
        raise NotATar(
            f"shard {path} is not a tar file or is cut inside its first member; replace it"
        )
    keys, start, duplicate, extensions, names = _samples(members)
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    arrays = {
        "start": np.array([*start, len(members)], dtype=np.int32),
        "offsets": np.array([m[1] for m in members], dtype=np.int64),
        "sizes": np.array([m[2] for m in members], dtype=np.int64),
    }
    sha = hashlib.sha1(b"\n".join(encoded))
    for array in arrays.values():
        sha.update(array.astype(np.int64).tobytes())
    return ShardIndex(
        head=Head(
            samples=len(keys),
            digest=f"{sha.hexdigest()}:{listing.content}",
            truncated=listing.truncated,
            damage=listing.damage,
            second_images=_second_images(extensions, names, arrays["start"]),
        ),
        names=names,
        extensions=np.array(extensions, dtype=np.int32),
        key_start=ends,
        key_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        duplicate=np.array(duplicate, dtype=np.bool_),
        **arrays,
    )


def _samples(
    members: list[Member],
) -> tuple[list[str], list[int], list[bool], list[int], tuple[str, ...]]:
    """(key, first member, whether the key came before) of each sample; extension of each member,
    by its place among the different extensions."""
    keys: list[str] = []
    start, duplicate, extensions = [], [], []
    seen: set[str] = set()
    here: set[str] = set()
    names: dict[str, int] = {}
    for row, (name, _, _) in enumerate(members):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = (f"{folder}/{stem}" if folder else stem), extension.lower()
        if not keys or keys[-1] != key or extension in here:
            keys.append(key)
            start.append(row)
            duplicate.append(key in seen)
            seen.add(key)
            here.clear()
        here.add(extension)
        extensions.append(names.setdefault(extension, len(names)))
    return keys, start, duplicate, extensions, tuple(names)


def _second_images(extensions: list[int], names: tuple[str, ...], start: np.ndarray) -> int:
    """How many samples have more than one image."""
    is_image = np.isin(extensions, [n for n, name in enumerate(names) if name in EXTENSIONS])
    before = np.cumsum([0, *is_image])
    return int((np.diff(before[start]) > 1).sum())
