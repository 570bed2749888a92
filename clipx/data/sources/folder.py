"""Images in a folder and the folders below it, each with its text in files beside it.

`a/b.jpg` has its caption in `a/b.txt`, which is one caption however many lines it has (as
img2dataset's `files` output and kohya's scripts write it), or fields with captions in `a/b.json`,
or both. Keys are paths below the folder without the extension: `a/b`.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import numpy as np

from clipx.config import config
from clipx.data.decode import EXTENSIONS, MAX_BYTES
from clipx.data.sample import BadSample, Raw, SampleError
from clipx.data.sample_files import local_path, read_image_file, read_text_file
from clipx.data.sources._contents import Entry, content_digests
from clipx.data.sources._strings import Strings
from clipx.types import UserError

SHARD_SAMPLES = 10_000
TEXTS = ("txt", "json")
_RANK = {name.encode(): rank for rank, name in enumerate((*EXTENSIONS, *TEXTS))}
_NONE = -1


@config
class Config:
    """A folder of images, searched to any depth. Names that start with a dot are passed over."""

    path: str
    """The folder. Moved or copied elsewhere, it is the same corpus."""

    def build(self) -> Folder:
        return Folder(Path(local_path(self.path)))


class Folder:
    """See `clipx.data.sample.Source`. A shard is a run of the sorted keys.

    Text is passed on as bytes, by the names `txt` and `json`.
    A digest covers names, sizes and the ends of each file, see `content_digests`.
    """

    is_remote = False
    fields = None

    def __init__(self, path: Path, *, shard_samples: int = SHARD_SAMPLES) -> None:
        """Raises UserError where there is no image."""
        if not path.is_dir():
            raise UserError(f"image folder {path} is not a folder (looked from {Path.cwd()})")
        self.path, self.shard_samples = path, shard_samples
        self.faults: list[BadSample] = []
        files = sorted(file for listed in walk(path, self.faults) for file in _files(*listed))
        found = [s for _, same in groupby(files, itemgetter(0)) for s in _samples(list(same))]
        if not found:
            raise UserError(_no_images(path, self.faults))
        starts = range(0, len(found), shard_samples)
        self.sizes = np.array([min(shard_samples, len(found) - n) for n in starts], dtype=np.int64)
        parts = [found[start : start + shard_samples] for start in starts]
        contents = content_digests(path, [_entries(part) for part in parts])
        layouts = map(_layout_digest, parts)
        self._digests = [f"{a}:{b}" for a, b in zip(layouts, contents, strict=True)]
        suffixes: dict[bytes, int] = {}
        codes = [
            [suffixes.setdefault(file[2], len(suffixes)) if file else _NONE for file in sample]
            for sample in found
        ]
        self._suffixes = tuple(map(os.fsdecode, suffixes))
        self._codes = np.array(codes, dtype=np.int16)  # (N, 3): of image, txt and json
        self._keys = Strings([image[0] for image, _, _ in found])
        self._is_duplicate = _repeats([image[0] for image, _, _ in found])

    @property
    def digests(self) -> Sequence[str]:
        return self._digests

    def name(self, shard: int) -> str:
        return f"{self.path}#{shard}"

    def key(self, shard: int, sample: int) -> str:
        row = self._row(shard, sample)
        suffix = self._suffix(row, 0) if self._is_duplicate[row] else ""
        return os.fsdecode(self._keys[row]) + suffix  # a duplicate has its key from its whole name

    def read(self, shard: int, sample: int, *, max_image_bytes: int = MAX_BYTES) -> Raw:
        row = self._row(shard, sample)
        stem = os.path.join(self._root, os.fsdecode(self._keys[row]))  # noqa: PTH118 5x faster
        if self._is_duplicate[row]:
            raise SampleError("key", "another image has the same name but for the extension")
        text: dict[str, bytes] = {}
        for kind, name in enumerate(TEXTS, start=1):
            if suffix := self._suffix(row, kind):
                text[name] = read_text_file(stem + suffix).removeprefix(codecs.BOM_UTF8)
        image = read_image_file(stem + self._suffix(row, 0), max_image_bytes)
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Files of a local folder are read when they are needed."""

    @cached_property
    def _root(self) -> str:
        return str(self.path)

    def _row(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return shard * self.shard_samples + sample

    def _suffix(self, row: int, kind: int) -> str:
        """`.jpg`, or nothing where the sample has no such file. kind: 0 image, 1 txt, 2 json"""
        code = self._codes[row, kind]
        return "" if code == _NONE else self._suffixes[code]


def walk(root: Path, faults: list[BadSample]) -> Iterator[tuple[bytes, list[os.DirEntry[bytes]]]]:
    """(path below the root with its slash, entries that are no folders) of every folder. One that
    cannot be listed is added to the faults."""
    folders = [(os.fsencode(root), b"", frozenset[tuple[int, int]]())]
    while folders:
        folder, prefix, above = folders.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 bytes
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(b".")]
        except OSError as error:
            name = type(error).__name__
            faults.append(BadSample(os.fsdecode(folder), "", -1, "read", name, str(error)))
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue  # a link to a folder that it lies in
        files = []
        for entry in entries:
            if _is_folder(entry):
                folders.append((entry.path, prefix + entry.name + b"/", above | {here}))
            else:
                files.append(entry)
        yield prefix, files


# Plain tuples, which the garbage collector does not go through: there may be millions.
# Key, rank of the extension, extension with its dot, bytes, time of the last change in ns.
_File = tuple[bytes, int, bytes, int, int]
_Sample = tuple[_File, _File | None, _File | None]  # image, txt, json


def _files(prefix: bytes, entries: list[os.DirEntry[bytes]]) -> Iterator[_File]:
    """The files of one folder that are images or text."""
    for entry in entries:
        stem, dot, extension = entry.name.rpartition(b".")
        rank = _RANK.get(extension.lower())
        if dot and rank is not None:
            yield prefix + stem, rank, dot + extension, *_size_and_time(entry)


def _samples(files: list[_File]) -> Iterator[_Sample]:
    """The sample of the files of one key, and each further image as a sample without text."""
    by_rank = {file[1]: file for file in reversed(files)}  # the first of each
    images = [file for file in files if file[1] < len(EXTENSIONS)]
    if images:
        yield images[0], by_rank.get(_RANK[b"txt"]), by_rank.get(_RANK[b"json"])
        yield from ((image, None, None) for image in images[1:])


def _repeats(keys: list[bytes]) -> np.ndarray:
    """(N,) bool: where a key equals the one before it."""
    return np.array([False, *(a == b for a, b in pairwise(keys))])


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: if its name is an image's, reading it tells
        return False


def _size_and_time(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    """-1 where the file cannot be looked at: reading it will tell why."""
    try:
        status = entry.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _entries(samples: list[_Sample]) -> list[Entry]:
    return [(f[0] + f[2], f[3], f[4]) for files in samples for f in files if f]


def _layout_digest(samples: list[_Sample]) -> str:
    sha = hashlib.sha1()
    for files in samples:
        for file in files:
            if file:
                sha.update(b"%b\0%b %d\0" % (file[0], file[2], file[3]))
    return sha.hexdigest()


def _no_images(path: Path, faults: Sequence[BadSample]) -> str:
    looked = ", ".join(f".{name}" for name in EXTENSIONS)
    text = f"image folder {path} has no {looked} file at any depth (looked from {Path.cwd()})"
    if any(path.glob("*.tar")):
        text += "; for its .tar shards, use name: webdataset"
    return text + "".join(
        f"\n  {fault.shard} cannot be listed: {fault.message}" for fault in faults
    )
