"""Any bytes as a table: rows beside a damaged one can be read."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from damage import mutations
from fuzzing import Fuzz
from hypothesis import strategies as st
from pyarrow import parquet

from clipx.data.captions import CaptionFields
from clipx.data.sample import SampleError, Source
from clipx.data.skip_list import read_skip_list
from clipx.data.sources import _parquet, table
from clipx.types import UserError

FIELDS = CaptionFields({"caption": 1.0, "tags": 1.0})


def read_all(source: Source) -> list[tuple[bytes, list[str]]]:
    """(image, captions) of the samples that can be used."""
    good = []
    for shard, size in enumerate(source.sizes.tolist()):
        for sample in range(size):
            source.key(shard, sample)
            with contextlib.suppress(SampleError, OSError):
                raw = source.read(shard, sample)
                good.append((raw.image, FIELDS.of(raw).texts))
    return good


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(4):
        (tmp_path / f"{n}.png").write_bytes(b"%d" % n)
    return tmp_path


def test_any_csv_is_rows_or_refused(fuzz: Fuzz, folder: Path) -> None:
    originals = [
        b"path,caption,tags\n0.png,zero,a\n1.png,one,b\n2.png,two,c\n3.png,three,d\n",
        b'path\tcaption\n0.png\t"a ""quoted"" one"\n1.png\t"two\nlines"\n',
        "\ufeffpath;caption\r\n0.png;\u732b\r\n".encode(),
        b"path,caption\n" + b"0.png,x\n" * 300,
    ]

    def check(content: bytes) -> None:
        (folder / "t.csv").write_bytes(content)
        with contextlib.suppress(UserError):
            read_all(table.Config(path=str(folder / "t.csv")).build())

    fuzz(mutations(originals), check)


def test_a_damaged_line_of_csv_costs_no_other(fuzz: Fuzz, folder: Path) -> None:
    good = [f"{n}.png,caption {n}" for n in range(4)]
    noise = st.binary(max_size=60).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
    quotes = st.sampled_from([b'"', b'1.png,"', b'"a"b,c', b",,,", b'0.png,x"', b"\0,\0", b"\xff"])
    place = st.integers(0, 4)

    def check(case: tuple[bytes, int]) -> None:
        line, at = case
        lines = [text.encode() for text in good]
        content = b"\n".join([b"path,caption", *lines[:at], line, *lines[at:], b""])
        (folder / "t.csv").write_bytes(content)
        samples = read_all(table.Config(path=str(folder / "t.csv")).build())
        assert {(b"%d" % n, f"caption {n}") for n in range(4)} <= {(i, c[0]) for i, c in samples}

    fuzz(st.tuples(st.one_of(noise, quotes), place), check)


def parquet_bytes(columns: dict[str, Any], **settings: Any) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, **settings)
    return buffer.getvalue()


def test_any_parquet_is_rows_or_refused(fuzz: Fuzz, folder: Path) -> None:
    """The footer stays as it is or is cut: pyarrow 26 aborts the process where the metadata of a
    column are damaged, since ColumnChunkMetaData lets a C++ exception through."""
    paths = {"path": [f"{n}.png" for n in range(4)]}
    texts = {"caption": ["zero", None, "\u732b", ""], "tags": [["a", "b"], None, [], ["c", None]]}
    images = {"image": [{"bytes": b"%d" % n, "path": f"{n}.png"} for n in range(4)]}
    category = pa.array(["x", "y", "x", None]).dictionary_encode()
    originals = [
        parquet_bytes(paths | texts),
        parquet_bytes(images | texts, row_group_size=2),
        parquet_bytes({"image": [b"1", b"2", None, b"4"]} | texts, compression="none"),
        parquet_bytes(paths | {"caption": category, "n": [1, 2, 3, 4]}, compression="gzip"),
    ]

    footers = [8 + int.from_bytes(data[-8:-4], "little") for data in originals]
    bodies = [data[:-size] for data, size in zip(originals, footers, strict=True)]

    def check(case: tuple[bytes, int, int]) -> None:
        body, number, cut = case
        footer = originals[number][-footers[number] :]
        (folder / "t.parquet").write_bytes(body + footer[: len(footer) - max(0, cut - 20)])
        _parquet._cache.cache_clear()
        with contextlib.suppress(UserError):
            read_all(table.Config(path=str(folder / "t.parquet")).build())

    fuzz(st.tuples(mutations(bodies), st.integers(0, 3), st.integers(0, 40)), check)


def test_any_bytes_of_parquet_texts_cost_their_row(fuzz: Fuzz, folder: Path) -> None:
    """Arrow does not check UTF-8 when it reads."""
    values = st.lists(st.one_of(st.binary(max_size=9), st.just(b"fine")), min_size=1, max_size=6)

    def check(case: tuple[list[bytes], bool]) -> None:
        captions, inside = case
        column = pa.array(captions, pa.binary()).cast(pa.string(), safe=False)
        images: list[Any] = [b"%d" % (n % 4) for n in range(len(captions))]
        where = (
            {"image": images} if inside else {"path": [f"{n % 4}.png" for n in range(len(images))]}
        )
        (folder / "t.parquet").write_bytes(parquet_bytes({**where, "caption": column}))
        _parquet._cache.cache_clear()
        source = table.Config(path=str(folder / "t.parquet")).build()
        assert len(source.digests) == len(source.sizes)
        expected = [(images[n], ["fine"]) for n, text in enumerate(captions) if text == b"fine"]
        assert [one for one in read_all(source) if one[1] == ["fine"]] == expected

    fuzz(st.tuples(values, st.booleans()), check)


class _Shards:
    """The part of a corpus that a skip list needs."""

    num_shards = 2

    def name(self, shard: int) -> str:
        return f"{shard}.tar"


def test_any_skip_list_is_one_or_refused(fuzz: Fuzz, tmp_path: Path) -> None:
    originals = [
        b'{"shard": "0.tar", "key": "a", "stage": "image"}\n{"shard": "1.tar", "key": "b"}\n',
        b'{"shard": ["0.tar"], "key": "a"}\n',
        b'{"shard": "0.tar", "key": {"a": 1}}\n',
        b"[" * 5000,
    ]
    path = tmp_path / "skip.jsonl"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            read_skip_list(path, _Shards())  # type: ignore[arg-type]

    fuzz(mutations(originals), check)
