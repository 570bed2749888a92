"""Decoded images on a local disk, so that a small corpus is decoded once and not in each epoch.

    <folder>/<settings>/table           digest of an encoded image -> place of its pixels
    <folder>/<settings>/pixels-00000    pixels, appended by the one process that created the file

An image is found by the digest of its encoded bytes, and `settings` names everything else that its
pixels depend on, so that a hit is what `decode` would return. All ranks, workers and runs share a
folder without locks. Any of them may be killed, or write the same image or row as another: pixels
are written before their row, and a row that is torn or without its pixels fails its checksum, which
is a miss.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
import zlib
from importlib import metadata
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import features
from torch import Tensor

from clipx.data import decode
from clipx.data.resize import packed
from clipx.progress import note
from clipx.types import RankError

VERSION = 2  # of the files' layout
_ROW = struct.Struct("<16s I Q I I I")  # digest, file, offset, height, width, checksum
_EMPTY = bytes(16)
_ROWS_PER_IMAGE = 4  # at least, so that few rows lie between an image's first place and its own
_MAX_PROBES = 32  # rows that are searched


class DecodedCache:
    """`decode(data)` returns what clipx.data.decode does. Raises RankError for an unusable folder.

    num_images: that the table is made for; of more, some are decoded each time
    """

    def __init__(
        self,
        folder: Path,
        num_images: int,
        *,
        max_pixels: int,
        max_bytes: int,
        exif_orientation: bool = True,
    ) -> None:
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.exif_orientation = exif_orientation
        # A power of two, so that corpora of about the same size share a folder.
        self.num_rows = 2 ** max(5, (_ROWS_PER_IMAGE * num_images - 1).bit_length())
        self.folder = folder / self._settings()
        self._process = 0  # that has opened the files below
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "table").open("ab") as table:
                table.truncate(self.num_rows * _ROW.size)  # with zeros, which are free rows
                if sys.platform == "linux":
                    # A map of a sparse file would end the process where the disk is full.
                    os.posix_fallocate(table.fileno(), 0, self.num_rows * _ROW.size)
        except OSError as error:
            raise RankError(
                f"data.decoded_cache {folder} cannot be written: {error}; give another folder, or "
                "null to decode in each epoch"
            ) from error

    def _settings(self) -> str:
        # Another version of a decoder may round another way.
        libraries = ("pil", "libjpeg_turbo", "webp", "zlib", "libtiff", "avif")
        versions = [features.version(name) for name in libraries]
        if decode.has_simplejpeg():
            versions.append(metadata.version("simplejpeg"))
        limits = (self.max_pixels, self.max_bytes, self.num_rows)
        settings = (VERSION, versions, limits, self.exif_orientation)
        return hashlib.sha1(repr(settings).encode()).hexdigest()[:16]

    def __getstate__(self) -> dict[str, object]:
        """Without open files, for a worker that is spawned."""
        names = ("max_pixels", "max_bytes", "exif_orientation", "num_rows", "folder")
        return {name: vars(self)[name] for name in names} | {"_process": 0}

    def decode(self, data: bytes) -> Tensor:
        """(3, H, W) uint8, in memory (H, W, 4). Raises BadImage."""
        digest = digest_of(data)
        pixels = self.read(digest)
        if pixels is None:
            pixels = decode.decode(
                data,
                max_pixels=self.max_pixels,
                max_bytes=self.max_bytes,
                exif_orientation=self.exif_orientation,
            )
            self._write(digest, pixels)
        return pixels

    def _open(self) -> None:
        self._process = os.getpid()
        # number of a file of pixels -> (descriptor, bytes that it is known to have)
        self._readers: dict[int, tuple[int, int]] = {}
        self._writer = -1
        self._writer_number = -1
        try:
            with (self.folder / "table").open("r+b") as file:
                self._table = mmap.mmap(file.fileno(), self.num_rows * _ROW.size)
            self._can_write = True
        except (OSError, ValueError) as error:  # removed or cut short since the start
            self._table = mmap.mmap(-1, self.num_rows * _ROW.size)  # of this process, empty
            self._stop_writing(error)

    def _stop_writing(self, error: Exception) -> None:
        """Training needs no cache: it continues with the images that are there."""
        note(f"data.decoded_cache {self.folder} keeps no further images: {error}")
        self._can_write = False

    def _find(self, digest: bytes) -> int | None:
        """Place of the row of a digest, or else of a free one. None where the table is full."""
        first = int.from_bytes(digest[:8], "little") % (self.num_rows - _MAX_PROBES + 1)
        for number in range(first, first + _MAX_PROBES):
            place = number * _ROW.size
            if self._table[place : place + len(digest)] in (digest, _EMPTY):
                return place
        return None

    def read(self, digest: bytes) -> Tensor | None:
        """The pixels of the image with this digest, None if it must be decoded."""
        if self._process != os.getpid():  # the first image, or the first after a fork
            self._open()
        place = self._find(digest)
        if place is None:
            return None
        key, number, offset, height, width, checksum = _ROW.unpack_from(self._table, place)
        if key != digest:
            return None
        size = height * width * 4
        try:
            descriptor, end = self._readers.get(number, (-1, 0))
            if offset + size > end:  # a new file, or one that has grown
                if descriptor < 0:
                    descriptor = os.open(self._pixel_file(number), os.O_RDONLY)
                end = os.fstat(descriptor).st_size
                self._readers[number] = (descriptor, end)
                if offset + size > end:  # a torn row may claim any size
                    return None
            words = np.empty((height, width, 4), np.uint8)
            # Read, not mapped: access to a map of a file that was cut short would kill the process.
            num_read = os.preadv(descriptor, [words.data], offset)
        except OSError:
            return None
        if num_read != size or _checksum(digest, height, width, words.data) != checksum:
            return None
        return torch.from_numpy(words)[..., :3].permute(2, 0, 1)

    def _write(self, digest: bytes, pixels: Tensor) -> None:
        if not self._can_write:
            return
        _, height, width = pixels.shape
        content = packed(pixels).tobytes()
        try:
            if self._writer < 0:
                self._create_pixel_file()
            offset = os.lseek(self._writer, 0, os.SEEK_END)
            if os.write(self._writer, content) < len(content):
                raise OSError("no space left on device")  # for a part of it there was
        except OSError as error:
            self._stop_writing(error)
            return
        checksum = _checksum(digest, height, width, content)
        row = (digest, self._writer_number, offset, height, width, checksum)
        place = self._find(digest)
        if place is not None:
            _ROW.pack_into(self._table, place, *row)

    def _create_pixel_file(self) -> None:
        """A file of this process alone, so that appending needs no lock."""
        for number in count():
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                self._writer = os.open(self._pixel_file(number), flags, 0o666)
            except FileExistsError:
                continue
            self._writer_number = number
            return

    def _pixel_file(self, number: int) -> Path:
        return self.folder / f"pixels-{number:05d}"


def digest_of(data: bytes) -> bytes:
    return hashlib.sha1(data).digest()[:16]


def _checksum(digest: bytes, height: int, width: int, content: bytes | memoryview) -> int:
    """Of the row as well, since two processes may write parts of two rows into one place."""
    row = digest + height.to_bytes(4, "little") + width.to_bytes(4, "little")
    return zlib.crc32(content, zlib.crc32(row))
