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
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from clipx.config import config
from clipx.data.decode import EXTENSIONS, MAX_BYTES
from clipx.data.sample import BadSample, Raw, SampleError
from clipx.data.sample_files import local_path, read_image_file, read_text_file
from clipx.data.sources._contents import content_digests
from clipx.data.sources._strings import Strings
from clipx.types import UserError

SHARD_SAMPLES = 10_000
TEXTS = ("txt", "json")
_RANK = {name.encode(): rank for rank, name in enumerate((*EXTENSIONS, *TEXTS))}
_NO_FILE = -1

# Plain tuples, which the garbage collector does not track: there may be millions.
# Key, rank of the extension, extension with its dot, bytes, time of the last change in ns.
_File = tuple[bytes, int, bytes, int, int]
_Sample = tuple[_File, _File | None, _File | None]  # image, txt, json


@config
class Config:
    """A folder of images, searched to any depth. Names that start with a dot are ignored."""

    path: str
    """The folder. Moved or copied elsewhere, it is the same corpus."""

    def build(self) -> Folder:
        return Folder(Path(local_path(self.path)))


class Folder:
    """See `clipx.data.sample.Source`. A shard is a run of the sorted keys.

    Text is returned as bytes, by the names `txt` and `json`.
    A digest covers names, sizes and the ends of each file, see `content_digests`.
    """

    is_remote = False
    fields = None

    def __init__(self, path: Path, *, shard_samples: int = SHARD_SAMPLES) -> None:
        """Raises UserError if there is no image."""
        if not path.is_dir():
            raise UserError(f"image folder {path} is not a folder (looked from {Path.cwd()})")
        self.path = path
        self.shard_samples = shard_samples
        self.faults: list[BadSample] = []
        samples = _find_samples(path, self.faults)
        if not samples:
            raise UserError(_no_images(path, self.faults))
        shards = [
            samples[first : first + shard_samples]
            for first in range(0, len(samples), shard_samples)
        ]
        self.sizes = np.array([len(shard) for shard in shards], dtype=np.int64)
        self.digests = _digests(path, shards)

        # The samples as arrays, which are small when pickled and shared after a fork.
        keys = [image[0] for image, _, _ in samples]
        self._keys = Strings(keys)
        self._is_duplicate = np.zeros(len(keys), dtype=np.bool_)
        self._codes = np.full((len(keys), 3), _NO_FILE, dtype=np.int16)  # of image, txt and json
        codes: dict[bytes, int] = {}
        for row, files in enumerate(samples):
            self._is_duplicate[row] = row > 0 and keys[row] == keys[row - 1]
            for kind, file in enumerate(files):
                if file is not None:
                    self._codes[row, kind] = codes.setdefault(file[2], len(codes))
        self._suffixes = tuple(map(os.fsdecode, codes))

    def name(self, shard: int) -> str:
        return f"{self.path}#{shard}"

    def key(self, shard: int, sample: int) -> str:
        """A duplicate has its whole name as its key."""
        row = self._row(shard, sample)
        suffix = self._suffix(row, 0) if self._is_duplicate[row] else ""
        return os.fsdecode(self._keys[row]) + suffix

    def read(self, shard: int, sample: int, *, max_image_bytes: int = MAX_BYTES) -> Raw:
        row = self._row(shard, sample)
        if self._is_duplicate[row]:
            raise SampleError("key", "another image has the same name but for the extension")
        stem = f"{self.path}/{os.fsdecode(self._keys[row])}"
        text: dict[str, bytes] = {}
        for kind, name in enumerate(TEXTS, start=1):
            suffix = self._suffix(row, kind)
            if suffix:
                text[name] = read_text_file(stem + suffix).removeprefix(codecs.BOM_UTF8)
        image = read_image_file(stem + self._suffix(row, 0), max_image_bytes)
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Files of a local folder are read when they are needed."""

    def _row(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return shard * self.shard_samples + sample

    def _suffix(self, row: int, kind: int) -> str:
        """`.jpg`, or "" if the sample has no such file. kind: 0 image, 1 txt, 2 json"""
        code = self._codes[row, kind]
        return "" if code == _NO_FILE else self._suffixes[code]


def _find_samples(root: Path, faults: list[BadSample]) -> list[_Sample]:
    """All samples, sorted by key. A second image of one key is a sample of its own, without text.
    Appends folders that cannot be listed to `faults`."""
    files: list[_File] = []
    for prefix, entries in walk(root, faults):
        for entry in entries:
            stem, dot, extension = entry.name.rpartition(b".")
            rank = _RANK.get(extension.lower())
            if dot and rank is not None:
                files.append((prefix + stem, rank, dot + extension, *_size_and_time(entry)))
    files.sort()
    samples: list[_Sample] = []
    for _, group in groupby(files, itemgetter(0)):
        images: list[_File] = []
        texts: dict[int, _File] = {}
        for file in group:
            if file[1] < len(EXTENSIONS):
                images.append(file)
            else:
                texts.setdefault(file[1], file)  # of `a.TXT` and `a.txt` the first
        if images:
            samples.append((images[0], texts.get(_RANK[b"txt"]), texts.get(_RANK[b"json"])))
            for image in images[1:]:
                samples.append((image, None, None))
    return samples


def walk(root: Path, faults: list[BadSample]) -> Iterator[tuple[bytes, list[os.DirEntry[bytes]]]]:
    """Yield (path below the root with its slash, entries that are not folders) of every folder."""
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
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link to a folder that contains it
        files = []
        for entry in entries:
            if _is_folder(entry):
                folders.append((entry.path, prefix + entry.name + b"/", above | {identity}))
            else:
                files.append(entry)
        yield prefix, files


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; if its name is an image's, reading it raises the reason
        return False


def _size_and_time(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    """-1 if the file cannot be looked at; reading it raises the reason."""
    try:
        status = entry.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _digests(root: Path, shards: Sequence[list[_Sample]]) -> list[str]:
    """`layout:content` of each shard: a digest of names and sizes, and one of the contents."""
    layouts: list[str] = []
    entries: list[list[tuple[bytes, int, int]]] = []
    for samples in shards:
        sha = hashlib.sha1()
        entries.append([])
        for files in samples:
            for file in files:
                if file is not None:
                    key, _, suffix, size, changed_ns = file
                    sha.update(b"%b\0%b %d\0" % (key, suffix, size))
                    entries[-1].append((key + suffix, size, changed_ns))
        layouts.append(sha.hexdigest())
    contents = content_digests(root, entries)
    return [f"{layout}:{content}" for layout, content in zip(layouts, contents, strict=True)]


def _no_images(path: Path, faults: Sequence[BadSample]) -> str:
    extensions = ", ".join(f".{name}" for name in EXTENSIONS)
    text = f"image folder {path} has no {extensions} file at any depth (looked from {Path.cwd()})"
    if any(path.glob("*.tar")):
        text += "; for its .tar shards, use name: webdataset"
    for fault in faults:
        text += f"\n  {fault.shard} cannot be listed: {fault.message}"
    return text
