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
from contextlib import suppress
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from clipx.config import config
from clipx.data.decode import MAX_BYTES
from clipx.data.image_formats import EXTENSIONS, HEIC_EXTENSIONS
from clipx.data.sample import PAIRS_REMEDY, BadSample, Raw, SampleError
from clipx.data.sample_files import local_path, read_image_file, read_text_file
from clipx.data.sources._contents import Entry, content_digests
from clipx.data.sources._rows import Strings
from clipx.types import UserError

SHARD_SAMPLES = 10_000
TEXTS = ("txt", "json")
_NAMES = (*EXTENSIONS, *HEIC_EXTENSIONS, *TEXTS)
_RANK = {name.encode(): rank for rank, name in enumerate(_NAMES)}
_NUM_PICTURES = len(EXTENSIONS) + len(HEIC_EXTENSIONS)

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
            extensions = ", ".join(f".{name}" for name in EXTENSIONS)
            message = f"image folder {path} has no {extensions} file at any depth"
            message += f" (looked from {Path.cwd()})"
            if any(path.glob("*.tar")):
                message += "; for its .tar shards, use name: webdataset"
            for fault in self.faults:
                message += f"\n  {fault.shard} cannot be listed: {fault.message}"
            raise UserError(message)
        first = np.arange(0, len(samples), shard_samples)
        self.sizes = np.minimum(len(samples) - first, shard_samples)
        self.digests = _digests(path, samples, shard_samples)

        # The samples as arrays, which are small when pickled and shared after a fork. The suffixes
        # of image, txt and json, `.jpg`, `.TXT` ..., are few, so that two bytes stand for each.
        self._is_duplicate = np.zeros(len(samples), dtype=np.bool_)
        self._codes = np.zeros((len(samples), 3), dtype=np.int16)
        codes = {b"": 0}  # for a file that is missing
        keys = []
        for row, files in enumerate(samples):
            key = files[0][0]
            self._is_duplicate[row] = row > 0 and key == keys[-1]
            keys.append(key)
            for kind, file in enumerate(files):
                if file is not None:
                    self._codes[row, kind] = codes.setdefault(file[2], len(codes))
        self._keys = Strings(keys)
        self._suffixes = tuple(map(os.fsdecode, codes))

    def name(self, shard: int) -> str:
        return f"{self.path}#{shard}"

    def key(self, shard: int, sample: int) -> str:
        """A duplicate has its whole name as its key."""
        row = self._row(shard, sample)
        key = os.fsdecode(self._keys[row])
        return key + self._suffixes[self._codes[row, 0]] if self._is_duplicate[row] else key

    def identity(self, shard: int, sample: int) -> str:
        return self.key(shard, sample)

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = MAX_BYTES,
        images: Sequence[str] | None = None,
    ) -> Raw:
        if images:
            raise SampleError("image", f"a sample of a folder has one image; {PAIRS_REMEDY}")
        row = self._row(shard, sample)
        if self._is_duplicate[row]:
            raise SampleError("key", "another image has the same name but for the extension")
        stem = f"{self.path}/{os.fsdecode(self._keys[row])}"
        image_suffix, *text_suffixes = [self._suffixes[code] for code in self._codes[row]]
        text: dict[str, bytes] = {}
        for name, suffix in zip(TEXTS, text_suffixes, strict=True):
            if suffix:
                # Editors on Windows begin a file by a byte order mark.
                text[name] = read_text_file(stem + suffix).removeprefix(codecs.BOM_UTF8)
        image = b""
        if images is None:
            image = read_image_file(stem + image_suffix, max_image_bytes)
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Files of a local folder are read when they are needed."""

    def _row(self, shard: int, sample: int) -> int:
        assert 0 <= sample < self.sizes[shard]
        return shard * self.shard_samples + sample


def _find_samples(root: Path, faults: list[BadSample]) -> list[_Sample]:
    """All samples, sorted by key. A second image of one key is a sample of its own, without text.
    A HEIC file, which cannot be read, is a sample only where no other image has its key: it is
    counted as bad then, and left out once it is converted. Appends folders that cannot be listed to
    `faults`."""
    files = []
    for prefix, entry in walk(root, faults):
        stem, dot, extension = entry.name.rpartition(b".")
        rank = _RANK.get(extension.lower())
        if not dot or rank is None:
            continue
        size = changed_ns = -1
        with suppress(OSError):  # reading the file raises the reason
            status = entry.stat()
            size = status.st_size
            changed_ns = status.st_mtime_ns
        files.append((prefix + stem, rank, dot + extension, size, changed_ns))
    files.sort()
    samples = []
    for _, group in groupby(files, itemgetter(0)):
        images = []
        heic = []
        texts: dict[int, _File] = {}
        for file in group:
            if file[1] < len(EXTENSIONS):
                images.append(file)
            elif file[1] < _NUM_PICTURES:
                heic.append(file)
            else:
                texts.setdefault(file[1], file)  # of `a.TXT` and `a.txt` the first
        images = images or heic[:1]
        if images:
            samples.append((images[0], texts.get(_RANK[b"txt"]), texts.get(_RANK[b"json"])))
            for image in images[1:]:
                samples.append((image, None, None))
    return samples


def walk(root: Path, faults: list[BadSample]) -> Iterator[tuple[bytes, os.DirEntry[bytes]]]:
    """Yield (path of its folder below the root with a slash, entry) of all that is no folder."""
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
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself; reading it, if it is an image, raises the reason
                is_folder = False
            if is_folder:
                folders.append((entry.path, prefix + entry.name + b"/", above | {identity}))
            else:
                yield prefix, entry


def _digests(root: Path, samples: Sequence[_Sample], shard_samples: int) -> list[str]:
    """`layout:content` of each shard: a digest of names and sizes, and one of the contents."""
    layouts = []
    entries: list[list[Entry]] = []  # of each shard
    for first in range(0, len(samples), shard_samples):
        layout = hashlib.sha1()
        entries.append([])
        for file in chain.from_iterable(samples[first : first + shard_samples]):
            if file is not None:
                key, _, suffix, size, changed_ns = file
                layout.update(b"%b\0%b %d\0" % (key, suffix, size))
                entries[-1].append((key + suffix, size, changed_ns))
        layouts.append(layout.hexdigest())
    contents = content_digests(root, entries)
    return [f"{layout}:{content}" for layout, content in zip(layouts, contents, strict=True)]
