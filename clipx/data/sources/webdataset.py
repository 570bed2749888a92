"""WebDataset tars, local or remote: what img2dataset writes and open_clip reads.

Remote shards (any fsspec URL: s3, gs, https, hf) come through a bounded cache on the local disk,
which all processes of a machine share. Pickled members are never opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic import Field

from clipx.config import config
from clipx.data import decode
from clipx.data.catalog import DECLARED, Catalog, open_catalog, remote_stamp
from clipx.data.remote import is_remote
from clipx.data.sample import BadSample, Raw, SampleError
from clipx.data.sample_files import MAX_TEXT_BYTES, TOO_MUCH_TEXT, check_size
from clipx.data.shard_cache import ShardCache
from clipx.data.shards import expand
from clipx.data.tar_index import ShardIndex, load_index, sidecars_of
from clipx.data.transfer.common import ShardFile
from clipx.files import stamp_of
from clipx.types import UserError

TEXT = ("txt", "json", "cls")
_REST_SECONDS = 60
"""Before a remote shard is tried again that all attempts have failed to bring: a store that is down
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
        self.catalog, self.cache = catalog, cache
        self.sizes = catalog.samples
        self._failed: dict[int, tuple[float, str]] = {}

    @property
    def digests(self) -> Sequence[str]:
        return [digest.decode() for digest in self.catalog.digests.tolist()]

    @property
    def faults(self) -> Sequence[BadSample]:
        return self.catalog.faults

    @cached_property
    def is_remote(self) -> bool:
        return any(is_remote(file.url) for file in self.catalog.files)

    def name(self, shard: int) -> str:
        return self.catalog.files[shard].url

    def key(self, shard: int, sample: int) -> str:
        index = self._open(shard).index
        if sample >= len(index):
            counted = self.sizes[shard]
            raise OSError(f"sizes.json counts {counted} samples, the tar has {len(index)}")
        return index.key(sample)

    def read(self, shard: int, sample: int, *, max_image_bytes: int = decode.MAX_BYTES) -> Raw:
        key, opened = self.key(shard, sample), self._open(shard)
        index = opened.index
        if index.duplicate[sample]:
            raise SampleError("key", "the shard has an earlier sample of this key")
        members = {name: (offset, size) for name, offset, size in index.members(sample)}
        image = next((members[name] for name in decode.EXTENSIONS if name in members), None)
        if image is None:
            looked = ", ".join(decode.EXTENSIONS)
            raise SampleError("image", f"no image member; looked for {looked}")
        check_size(image[1], max_image_bytes)
        text = {name: _text(opened, name, *members[name]) for name in TEXT if name in members}
        return Raw(key, opened.pread(*image), text, self._note(shard, sample, len(index)))

    def _note(self, shard: int, sample: int, there: int) -> str:
        """A message, with the last sample that sizes.json counts, that the shard has more."""
        counted = int(self.sizes[shard])
        if sample != counted - 1 or there == counted:
            return ""
        return (
            f"sizes.json counts {counted} samples and the tar has {there}: the last "
            f"{there - counted} are not used; correct sizes.json or remove it"
        )

    def prefetch(self, shards: Sequence[int]) -> None:
        if self.is_remote:
            files = [self.catalog.files[shard] for shard in shards if not self._rests(shard)]
            self.cache.prefetch([file for file in files if is_remote(file.url)])

    def _rests(self, shard: int) -> bool:
        until, _ = self._failed.get(shard, (0.0, ""))
        return time.monotonic() < until

    def _open(self, shard: int) -> OpenShard:
        file = self.catalog.files[shard]
        if self._rests(shard):
            raise OSError(self._failed[shard][1])
        try:
            return _opened(file, self.catalog.digest(shard), self.cache)
        except OSError as error:
            if is_remote(file.url):
                self._failed[shard] = (time.monotonic() + _REST_SECONDS, str(error))
            raise


class OpenShard:
    """An open file and its index, closed when nobody holds it: a thread may still be reading what
    another has pushed out of the cache."""

    def __init__(self, descriptor: int, index: ShardIndex, url: str) -> None:
        self._descriptor, self.index, self._url = descriptor, index, url

    def pread(self, offset: int, size: int) -> bytes:
        """One positioned read. Raises OSError where the shard has become shorter than its index
        says."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            end = offset + len(data)
            raise OSError(f"{self._url} ends at byte {end}, {size - len(data)} bytes early")
        return data

    def __del__(self) -> None:
        os.close(self._descriptor)


def _text(opened: OpenShard, name: str, offset: int, size: int) -> bytes:
    """Raises SampleError and OSError."""
    if size > MAX_TEXT_BYTES:
        raise SampleError("caption", f"the .{name} member has {size:,} bytes, {TOO_MUCH_TEXT}")
    return opened.pread(offset, size)


def open_shard(path: Path) -> OpenShard:
    """A local shard. Raises UserError where it is no tar, OSError where it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        stamp = stamp_of(os.fstat(descriptor))
        index = load_index(path, stamp=stamp, descriptor=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenShard(descriptor, index, str(path))


@lru_cache(maxsize=512)  # half of the usual limit of open files
def _opened(file: ShardFile, digest: str, cache: ShardCache) -> OpenShard:
    """Raises OSError, also where the shard is no longer what the run began with."""
    try:
        opened = _open_remote(file, cache) if is_remote(file.url) else open_shard(Path(file.url))
    except UserError as error:
        raise OSError(str(error)) from error
    if opened.index.head.digest != digest and not digest.startswith(DECLARED):
        raise OSError(f"{file.url} has changed since it was indexed")
    return opened


def close_shards() -> None:
    """Close what reading has left open in this process; what is needed again is opened again."""
    _opened.cache_clear()


def _open_remote(file: ShardFile, cache: ShardCache) -> OpenShard:
    descriptor = cache.open(file)
    try:
        # By the descriptor: others may push the file out of the cache before its index is made.
        place = cache.place(file)
        has_index = sidecars_of(place)[0].exists()
        index = load_index(place, stamp=remote_stamp(file), descriptor=descriptor)
        if not has_index:
            cache.trim()
    except BaseException:
        os.close(descriptor)
        raise
    return OpenShard(descriptor, index, file.url)
