"""The index of a tar shard: its samples, and the byte ranges of their members.

A shard is a WebDataset tar: members of one sample stand together and share the name up to the first
dot (`0001.png`, `0001.txt`). With an index, any sample is one positioned read away.

Indexes are kept in a sidecar, `<shard>.clipx-index` (other tools write `<shard>.idx`): one line of
JSON, then plain arrays. It is mapped into memory, so that worker processes share its pages.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipx.data.image_formats import EXTENSIONS
from clipx.data.tar import Listing, list_members
from clipx.files import cache_folder, digest_path, map_file, stamp_of, write_whole
from clipx.types import UserError

INDEX_VERSION = 4
SUFFIX = ".clipx-index"
_ALIGNMENT = 64  # each array of a sidecar begins at a multiple of so many bytes
_DTYPES = {  # in the order of a sidecar
    "start": np.int32,
    "offsets": np.int64,
    "sizes": np.int64,
    "extensions": np.int32,
    "key_start": np.int32,
    "key_bytes": np.uint8,
    "duplicate": np.bool_,
}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # by a sidecar that is missing or damaged


class NotATar(UserError):
    """A file that has no sample."""


@dataclass(frozen=True)
class Head:
    """A summary of a shard.

    digest: `layout:content`, a SHA-1 over keys and byte ranges and one over the first and last
    2 KiB of each member
    truncated: the tar ends early; the samples before the break are complete
    damage: a message about other damage, or ""; the samples listed are good
    second_images: samples with more than one image, of which one is used
    """

    samples: int
    digest: str
    truncated: bool
    damage: str = ""
    second_images: int = 0


@dataclass(frozen=True)
class ShardIndex:
    """N samples with M members. Sample i has the members `start[i]:start[i + 1]`.

    start: (N + 1,); offsets, sizes: (M,) bytes; extensions: (M,) places in `names`
    key_start: (N + 1,) where in the bytes `key_bytes` the key of a sample begins
    duplicate: (N,) True where the shard has an earlier sample of the same key
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
        key = self.key_bytes[self.key_start[sample] : self.key_start[sample + 1]]
        return key.tobytes().decode("utf-8", "surrogateescape")

    @property
    def keys(self) -> list[str]:
        return [self.key(sample) for sample in range(len(self))]

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of one sample."""
        members = []
        for row in range(self.start[sample], self.start[sample + 1]):
            extension = self.names[self.extensions[row]]
            members.append((extension, int(self.offsets[row]), int(self.sizes[row])))
        return members


def build_index(path: Path, descriptor: int | None = None) -> ShardIndex:
    """Walk the tar headers once. Raises NotATar and OSError.

    descriptor: of the shard, if it is open
    """
    if descriptor is None:
        with path.open("rb") as file:
            return build_index(path, file.fileno())
    listing = list_members(descriptor)
    if not listing.members and (listing.truncated or listing.damage):
        raise NotATar(
            f"shard {path} is not a tar file or is cut inside its first member; replace it"
        )
    return _group(listing)


def _group(listing: Listing) -> ShardIndex:
    """Group members into samples: consecutive ones with the same key."""
    start = []  # first member of each sample
    offsets = []
    sizes = []
    keys = []
    duplicate = []
    numbers: dict[str, int] = {}  # of the extensions, in the order in which they come
    extensions = []
    second_images = 0
    seen = set()
    key = None
    current = set()  # extensions of the sample so far
    num_images = 0
    for row, (name, offset, size) in enumerate(listing.members):
        offsets.append(offset)
        sizes.append(size)
        previous = key
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        extension = extension.lower()
        # A second member with this key and extension begins another sample of that key.
        if key != previous or extension in current:
            start.append(row)
            keys.append(key.encode("utf-8", "surrogateescape"))
            duplicate.append(key in seen)
            seen.add(key)
            current = set()
            num_images = 0
        current.add(extension)
        extensions.append(numbers.setdefault(extension, len(numbers)))
        if extension in EXTENSIONS:
            num_images += 1
            second_images += num_images == 2  # a third one is of the same sample
    start.append(len(listing.members))

    # As 64-bit integers: a digest must not change with the dtype in which an array is stored.
    layout = hashlib.sha1(b"\n".join(keys))
    for values in (start, offsets, sizes):
        layout.update(np.array(values, dtype=np.int64).tobytes())
    digest = f"{layout.hexdigest()}:{listing.content}"
    return ShardIndex(
        Head(len(keys), digest, listing.truncated, listing.damage, second_images),
        tuple(numbers),
        start=np.array(start, dtype=np.int32),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        extensions=np.array(extensions, dtype=np.int32),
        key_start=np.cumsum([0, *map(len, keys)], dtype=np.int32),
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        duplicate=np.array(duplicate, dtype=np.bool_),
    )


def load_index(
    path: Path, *, stamp: str | None = None, descriptor: int | None = None
) -> ShardIndex:
    """Read the index of a shard from its sidecar, or build it and write the sidecar. Raises
    NotATar, and OSError where the shard cannot be read.

    stamp: changes when the shard does; by default its size and time
    descriptor: of the shard, if it is open: in a shared cache its path may have been removed
    """
    stamp = stamp or stamp_of(path.stat())
    for sidecar in sidecars_of(path):
        index = _read_sidecar(sidecar, stamp)
        if index is not None:
            return index
    index = build_index(path, descriptor)
    if not path.exists():
        return index  # evicted from a shared cache, where a sidecar would now stay forever
    line = {
        "version": INDEX_VERSION,
        "stamp": stamp,
        "head": vars(index.head),
        "names": index.names,
        "lengths": [len(getattr(index, name)) for name in _DTYPES],
    }
    content = bytearray(json.dumps(line).encode() + b"\n")
    for name, dtype in _DTYPES.items():
        content += bytes(-len(content) % _ALIGNMENT)  # padding before the array
        content += np.ascontiguousarray(getattr(index, name), dtype=dtype).tobytes()
    for sidecar in sidecars_of(path):
        with suppress(OSError):  # a sidecar is only a cache
            sidecar.parent.mkdir(parents=True, exist_ok=True)
            write_whole(sidecar, bytes(content))
            break
    return index


def load_head(path: Path, *, stamp: str | None = None, descriptor: int | None = None) -> Head:
    """Read the head of a shard, of its sidecar only the first line. See `load_index`."""
    stamp = stamp or stamp_of(path.stat())
    for sidecar in sidecars_of(path):
        try:
            with sidecar.open("rb") as file:
                line = json.loads(file.readline())
            if (line["version"], line["stamp"]) == (INDEX_VERSION, stamp):
                return Head(**line["head"])
        except _UNREADABLE:
            continue
    return load_index(path, stamp=stamp, descriptor=descriptor).head


def sidecars_of(path: Path) -> list[Path]:
    """Where the sidecar of a shard may be: beside it, or in the user's cache directory if that
    folder cannot be written."""
    beside = path.with_name(path.name + SUFFIX)
    return [beside, cache_folder("index") / (digest_path(path) + SUFFIX)]


def _read_sidecar(sidecar: Path, stamp: str) -> ShardIndex | None:
    """Returns None if there is no complete sidecar for this state of the shard."""
    try:
        # Opened once: by its path, it may be another file by now, or evicted from a shared cache.
        with sidecar.open("rb") as file:
            first = file.readline()
            line = json.loads(first)
            if (line["version"], line["stamp"]) != (INDEX_VERSION, stamp):
                return None
            data = map_file(file)
        end = len(first)
        arrays = []
        for length, dtype in zip(line["lengths"], _DTYPES.values(), strict=True):
            begin = end + -end % _ALIGNMENT
            arrays.append(np.frombuffer(data, dtype=dtype, count=length, offset=begin))
            end = begin + arrays[-1].nbytes
        return ShardIndex(Head(**line["head"]), tuple(line["names"]), *arrays)
    except _UNREADABLE:
        return None
