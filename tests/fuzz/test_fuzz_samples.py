"""Any bytes in place of a tar: no sample that is whole is lost, and none is paired wrongly."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from damage import DAMAGES, Damage, damaged, mutations
from fuzzing import Fuzz
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, heic, jpeg, picture, png, png_claiming

from clipx.data import shards
from clipx.data.captions import CaptionFields
from clipx.data.config import DataConfig
from clipx.data.decode import BadImage
from clipx.data.sample import Raw, SampleError
from clipx.data.sources import webdataset
from clipx.data.tar_index import build_index
from clipx.data.transfer.common import ShardFile
from clipx.types import UserError

NUM = 8
LONG = "a_folder_with_a_long_name/" * 6


PAIRS = [(b"image %d " % n * 99, b"caption %d" % n) for n in range(NUM)]


def tar(format: int, prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for n, pair in enumerate(PAIRS):
            for extension, data in zip(("png", "txt"), pair, strict=True):
                info = tarfile.TarInfo(f"{prefix}{n}.{extension}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TARS = [
    tar(tarfile.USTAR_FORMAT),
    tar(tarfile.GNU_FORMAT, LONG),
    tar(tarfile.PAX_FORMAT, LONG),
    tar(tarfile.PAX_FORMAT, "\u732b/"),
]


def test_any_bytes_are_a_shard_or_are_refused(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    pieces = [*TARS, *(data[:1024] for data in TARS), bytes(512), bytes(1024)]
    several = st.lists(mutations(pieces), max_size=6)

    def check(parts: list[bytes]) -> None:
        path.write_bytes(b"".join(parts))
        with contextlib.suppress(UserError):
            index = build_index(path)
            for number in range(len(index)):
                index.key(number)
                for _, offset, size in index.members(number):
                    assert offset >= 0
                    assert size >= 0
                    assert offset + size <= path.stat().st_size

    fuzz(several, check)


def test_samples_beside_damage_are_read_and_paired_as_they_were(fuzz: Fuzz, tmp_path: Path) -> None:
    """The samples 0 and 7 stay whole; between them anything may happen."""
    path = tmp_path / "0.tar"
    fields = CaptionFields({"txt": 1.0})

    def check(case: tuple[int, list[Damage]]) -> None:
        number, damages = case
        whole = TARS[number]
        first, last = _bounds(whole)
        path.write_bytes(whole[:first] + damaged(whole[first:last], damages) + whole[last:])
        source = webdataset.Config(str(path)).build()
        pairs = set()
        for sample in range(int(source.sizes.sum())):
            with contextlib.suppress(SampleError):
                raw = source.read(0, sample)
                pairs.add((raw.image, fields.of(raw).texts[0].encode()))
        assert PAIRS[0] in pairs
        if {kind for kind, *_ in damages} & {"cut", "repeat", "end"}:
            return  # a header may stand before another member's content, or swallow the last one
        assert PAIRS[NUM - 1] in pairs
        images = {image: n for n, (image, _) in enumerate(PAIRS)}
        texts = {text: n for n, (_, text) in enumerate(PAIRS)}
        for image, text in pairs:  # those that are still whole belong together
            if image in images and text in texts:
                assert images[image] == texts[text]

    fuzz(st.tuples(st.integers(0, len(TARS) - 1), DAMAGES), check)


def _bounds(data: bytes) -> tuple[int, int]:
    """Where the second sample begins and where the last one does, with their long names."""
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        members = file.getmembers()
    return members[2].offset, members[-2].offset


def test_any_json_is_a_caption_or_a_bad_sample(fuzz: Fuzz) -> None:
    good = [
        {"captions": ["one", "two"], "title": "three"},
        {"title": ["\u732b", ""], "n": [1, None, True, {"captions": "x"}], "e": 1e999},
        {"captions": "x" * 300, "title": 3},
    ]
    originals = [json.dumps(value).encode() for value in good]
    originals += [b"[" * 5000, b'{"captions":' * 3000, b'{"captions": ' + b"9" * 5000 + b"}"]
    fields = CaptionFields({"captions": 0.5, "title": 0.5})

    def check(data: bytes) -> None:
        with contextlib.suppress(SampleError):
            texts = fields.of(Raw("k", b"", {"json": data, "txt": b"the text"})).texts
            assert texts
            assert all(text.strip() == text and text for text in texts)
        with contextlib.suppress(SampleError):
            CaptionFields.names(Raw("k", b"", {"json": data}))

    fuzz(mutations(originals), check)


def test_any_image_is_pixels_or_bad(fuzz: Fuzz) -> None:
    originals = [
        png(0),
        jpeg(0),
        png_claiming(60_000, 60_000),
        encoded(picture(1), "WEBP"),
        encoded(picture(2, mode="RGBA"), "WEBP", lossless=True),
        encoded(picture(3), "JPEG", progressive=True),
        encoded(picture(4, mode="CMYK"), "JPEG"),
        encoded(picture(5, mode="P"), "PNG", transparency=1),
        encoded(picture(6, mode="L"), "PNG"),
        encoded(picture(7), "PNG", save_all=True, append_images=[picture(8)]),
        encoded(picture(9), "WEBP", save_all=True, append_images=[picture(8)]),
        encoded(picture(1, mode="P"), "GIF", transparency=1),
        encoded(picture(2), "BMP"),
        encoded(picture(3, mode="1"), "BMP"),
        encoded(picture(4), "TIFF", compression="tiff_lzw"),
        encoded(picture(5), "TIFF", save_all=True, append_images=[picture(8)]),
        encoded(picture(6), "AVIF"),
        heic(b"mif1"),
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        originals.append(encoded(picture(7), kind, exif=exif))
    config = DataConfig(shards="x", max_image_pixels=1_000_000)

    def check(data: bytes) -> None:
        with contextlib.suppress(BadImage):
            pixels = config.pixels(data)
            assert pixels.shape[0] == 3
            assert pixels[0].numel() <= 1_000_000

    fuzz(mutations(originals), check)


def test_any_sizes_json_is_numbers_or_refused(fuzz: Fuzz, monkeypatch: Any) -> None:
    originals = [b'{"0.tar": 5, "1.tar": 700}', b'{"0.tar": "5"}', b'{"0.tar": -5}', b'{"": 1e9}']
    originals += [b"[" * 9000, b'{"0.tar": ' + b"9" * 30 + b"}"]
    content: list[bytes] = [b""]
    monkeypatch.setattr(shards, "fetch_small", lambda url: content[0])

    def check(data: bytes) -> None:
        content[0] = data
        with contextlib.suppress(UserError):
            sizes = shards.declared_sizes([ShardFile("s3://bucket/0.tar", 1, "", "")])
            assert all(0 <= count < 2**31 for count in sizes.values())

    fuzz(mutations(originals), check)
