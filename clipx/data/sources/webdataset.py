"""WebDataset tars, local or remote, as img2dataset writes and open_clip reads them.

Remote shards (any fsspec URL: s3, gs, https, hf) are downloaded into a bounded cache on the local
disk, which all processes of a machine share. Pickled members are never opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from clipx.config import config
from clipx.data import decode, image_formats
from clipx.data.catalog import DECLARED, Catalog, open_catalog, remote_stamp
from clipx.data.remote import is_remote
from clipx.data.sample import BadSample, Raw, SampleError
from clipx.data.sample_files import MAX_TEXT_BYTES, TOO_MUCH_TEXT, check_size
from clipx.data.shard_cache import ShardCache
from clipx.data.shards import expand
from clipx.data.tar_index import load_index, sidecars_of
from clipx.data.transfer.common import ShardFile
from clipx.files import stamp_of
from clipx.types import UserError

TEXT = ("txt", "json", "cls")
_REST_SECONDS = 60
"""Time before a remote shard is tried again after all attempts have failed: a store that is down
for minutes must not cost minutes for each sample."""


@config
class Config:
    shards: str | list[str]
    """Folder, glob, `{000..127}` range or list, URL of these, or several joined by `::`."""
    cache_dir: str = "~/.cache/clipx/shards"
    """Where remote shards are kept; a fast local disk."""
    cache_gib: float = Field(default=50, gt=0)
    """Room for remote shards. At least streams x window samples of them are read at a time."""
    allow_pipe: bool = False
    """`pipe:command` runs a shell command that writes a shard to its output."""

    def build(self) -> Webdataset:
        cache = self.cache()
        return Webdataset(open_catalog(self.files(), cache), cache)

    def files(self) -> list[ShardFile]:
        """Raises UserError."""
        return expand(self.shards, allow_pipe=self.allow_pipe)

    def cache(self) -> ShardCache:
        return ShardCache(Path(self.cache_dir).expanduser(), int(self.cache_gib * 2**30))


class Webdataset:
    """See `clipx.data.sample.Source`."""

    fields = None

    def __init__(self, catalog: Catalog, cache: ShardCache) -> None:
        self.catalog = catalog
        self.cache = cache
        self.sizes = catalog.samples
        self.faults: Sequence[BadSample] = catalog.faults
        self.is_remote = any(is_remote(file.url) for file in catalog.files)
        self._failed: dict[int, tuple[float, str]] = {}  # shard -> (time to try again, error)

    @property
    def digests(self) -> Sequence[str]:
        # Not kept: as str, the digests of 200,000 shards take 25 MB in each process.
        return [digest.decode() for digest in self.catalog.digests.tolist()]

    def name(self, shard: int) -> str:
        return self.catalog.files[shard].url

    def key(self, shard: int, sample: int) -> str:
        index = self._open(shard).index
        if sample >= len(index):
            declared = self.sizes[shard]
            raise OSError(f"sizes.json counts {declared} samples, the tar has {len(index)}")
        return index.key(sample)

    def identity(self, shard: int, sample: int) -> str:
        return self.key(shard, sample)

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = decode.MAX_BYTES,
        images: Sequence[str] | None = None,
    ) -> Raw:
        """images: members of a pair, without their extensions: `a` is a.jpg, a.png ..."""
        key = self.key(shard, sample)
        opened = self._open(shard)
        index = opened.index
        if index.duplicate[sample]:
            raise SampleError("key", "the shard has an earlier sample of this key")
        members = {name: (offset, size) for name, offset, size in index.members(sample)}
        places = []
        for name in ("",) if images is None else images:
            offset, size = _image_member(members, name)
            check_size(size, max_image_bytes)
            places.append((offset, size))
        text = _read_texts(opened, members)

        # Recorded once, with the last sample that sizes.json counts.
        note = ""
        declared = int(self.sizes[shard])
        if sample == declared - 1 and declared < len(index):
            note = (
                f"sizes.json counts {declared} samples and the tar has {len(index)}: the last "
                f"{len(index) - declared} are not used; correct sizes.json or remove it"
            )
        pictures = [opened.pread(offset, size) for offset, size in places]
        first, second, *_ = [*pictures, b"", b""]
        return Raw(key, first, text, note, second)

    def prefetch(self, shards: Sequence[int]) -> None:
        if not self.is_remote:
            return
        files = []
        for shard in shards:
            file = self.catalog.files[shard]
            retry_time, _ = self._failed.get(shard, (0.0, ""))
            if is_remote(file.url) and time.monotonic() >= retry_time:
                files.append(file)
        self.cache.prefetch(files)

    def _open(self, shard: int) -> OpenShard:
        file = self.catalog.files[shard]
        retry_time, message = self._failed.get(shard, (0.0, ""))
        if time.monotonic() < retry_time:
            raise OSError(message)
        try:
            return _opened(file, self.catalog.digest(shard), self.cache)
        except OSError as error:
            if is_remote(file.url):
                # The samples of this shard are replaced at once until it is tried again.
                self._failed[shard] = (time.monotonic() + _REST_SECONDS, str(error))
            raise


def _image_member(members: Mapping[str, tuple[int, int]], name: str) -> tuple[int, int]:
    """(offset, size) of the image of a sample, or of its image `name`. Raises SampleError."""
    prefix = f"{name}." if name else ""
    # The first extension in the order of EXTENSIONS, whatever their order in the tar.
    for extension in image_formats.EXTENSIONS:
        if prefix + extension in members:
            return members[prefix + extension]
    for extension in image_formats.HEIC_EXTENSIONS:
        if prefix + extension in members:
            raise SampleError(
                "image", f"the image is .{prefix}{extension}: {image_formats.HEIC_REMEDY}"
            )
    wanted = ", ".join(prefix + extension for extension in image_formats.EXTENSIONS)
    there = f"; members there: {', '.join(members)}" if name else ""
    raise SampleError("image", f"no image member; looked for {wanted}{there}")


def _read_texts(opened: OpenShard, members: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
    """The members of TEXT by extension, and each `NAME.txt` by its name. Raises SampleError."""
    names = {extension: extension for extension in TEXT if extension in members}
    for extension in members:
        if extension.endswith(".txt"):  # `txt` itself has no dot
            names[extension] = extension.removesuffix(".txt")
    text: dict[str, bytes] = {}
    for extension, name in names.items():
        offset, size = members[extension]
        if size > MAX_TEXT_BYTES:
            raise SampleError(
                "caption", f"the .{extension} member has {size:,} bytes, {TOO_MUCH_TEXT}"
            )
        text[name] = opened.pread(offset, size)
    return text


class OpenShard:
    """An open file and its index. It is closed with its last reference, since one thread may still
    be reading a shard when another one displaces it from the table of open shards."""

    def __init__(self, descriptor: int, path: Path, *, stamp: str, url: str) -> None:
        """Raises UserError if the file is not a tar, OSError if it cannot be read."""
        self._descriptor = descriptor
        self._url = url
        # By the descriptor, since another process may evict a remote file before it is indexed.
        self.index = load_index(path, stamp=stamp, descriptor=descriptor)

    def pread(self, offset: int, size: int) -> bytes:
        """Read once at a position. Raises OSError if the shard is too short."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            end = offset + len(data)
            raise OSError(f"{self._url} ends at byte {end}, {size - len(data)} bytes early")
        return data

    def __del__(self) -> None:
        os.close(self._descriptor)


def open_shard(path: Path) -> OpenShard:
    """Open a local shard. Raises UserError if it is not a tar, OSError if it cannot be read."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    return OpenShard(descriptor, path, stamp=stamp_of(os.fstat(descriptor)), url=str(path))


@lru_cache(maxsize=512)  # half of the usual limit of open files
def _opened(file: ShardFile, digest: str, cache: ShardCache) -> OpenShard:
    """Raises OSError, also if the shard has changed since the run began."""
    try:
        if is_remote(file.url):
            descriptor = cache.open(file)
            path = cache.place(file)
            has_index = sidecars_of(path)[0].exists()
            opened = OpenShard(descriptor, path, stamp=remote_stamp(file), url=file.url)
            if not has_index:
                cache.trim()  # the new sidecar takes room in the cache too
        else:
            opened = open_shard(Path(file.url))
    except UserError as error:
        raise OSError(str(error)) from error  # one shard must not end the run
    if opened.index.head.digest != digest and not digest.startswith(DECLARED):
        raise OSError(f"{file.url} has changed since it was indexed")
    return opened


def close_shards() -> None:
    """Close the shards that this process has open; they are opened again when needed."""
    _opened.cache_clear()
