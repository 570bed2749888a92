"""Generated pictures and tar shards: what the data tests are made of."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Members = Mapping[str, Any]


def picture(seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    """A smooth picture of (width, height), so that JPEG and resizing have something to keep."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    return encoded(picture(seed, size), "PNG")


def jpeg(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    return encoded(picture(seed, size), "JPEG", quality=90)


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes whose header claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def heic(major: bytes = b"heic") -> bytes:
    """The first box of a photograph of an iPhone, and no pixels."""
    brands = major + b"\0\0\0\0" + b"mif1" + b"MiHE" + b"heic"
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + b"\0\0\0\x10meta" + bytes(8)


def pair(seed: int) -> dict[str, Any]:
    """The members of one good sample: PNG or JPEG, caption in `.txt` or several in `.json`."""
    image = {"jpg": jpeg(seed)} if seed % 2 else {"png": png(seed)}
    if seed % 3:
        return {"txt": f"picture number {seed}", **image}
    return {"json": {"captions": [f"picture {seed}", f"a longer caption of {seed}"]}, **image}


def as_bytes(content: Any) -> bytes:
    """Bytes as they are, text as UTF-8, anything else as JSON."""
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def write_tar(
    path: Path, members: Mapping[str, Any], *, format: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            data = as_bytes(content)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, samples: Mapping[str, Members]) -> Path:
    """samples: key -> extension -> content"""
    members = {
        f"{key}.{ext}": data for key, parts in samples.items() for ext, data in parts.items()
    }
    return write_tar(path, members)


def write_corpus(folder: Path, sizes: tuple[int, ...] = (5, 1, 7)) -> dict[str, Members]:
    """Shards of these sizes with the samples `k00`, `k01` ...; returns all samples."""
    samples = {f"k{n:02d}": pair(n) for n in range(sum(sizes))}
    rest = list(samples)
    for number, size in enumerate(sizes):
        here, rest = rest[:size], rest[size:]
        write_shard(folder / f"{number:05d}.tar", {key: samples[key] for key in here})
    return samples


def solid(color: tuple[int, int, int]) -> bytes:
    return encoded(Image.new("RGB", (8, 8), color), "PNG")


def write_test_set(folder: Path, *shards: Mapping[str, Members], **files: list[str]) -> Path:
    """A folder in CLIP_benchmark's layout; files: `classnames=["cat", "dog"]` and the like."""
    for number, samples in enumerate(shards):
        write_shard(folder / "test" / f"{number}.tar", samples)
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
