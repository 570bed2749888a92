"""A table gives its rows: CSV as it is written, Parquet with paths or with the images inside."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from samples import jpeg, png

from clipx.config import build
from clipx.data.captions import CaptionFields
from clipx.data.sample import Raw, SampleError
from clipx.data.sources import _parquet, table
from clipx.data.sources.table import Table
from clipx.types import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures 0.png ... 4.png in the folder of the tables."""
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    return tmp_path


def opened(path: Path | list[Path], **options: Any) -> Table:
    files = path if isinstance(path, list) else [path]
    data = {"path": [str(file) for file in files], **options}
    return build(table.Config, data, where="a test").build()


def rows(source: Table) -> list[Raw]:
    return [source.read(s, n) for s, size in enumerate(source.sizes) for n in range(size)]


def written(root: Path, content: str | bytes, name: str = "t.csv") -> Path:
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root / name


# --- CSV ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'filepath,title,n\n0.png,a cat,7\n1.png,"a ""dog"", asleep",8\n'),
        ("t.csv", '\ufefffilepath,title,n\r\n0.png,a cat,7\r\n1.png,"a ""dog"", asleep",8'),
        ("t.tsv", 'filepath\ttitle\tn\n0.png\ta cat\t7\n\n1.png\t"a ""dog"", asleep"\t8\n'),
    ],
)
def test_rows_are_samples_and_columns_text_fields(root: Path, name: str, content: str) -> None:
    first, second = rows(opened(written(root, content, name)))
    assert first == Raw("00000000:0.png", png(0), {"title": "a cat", "n": "7"})
    assert second == Raw("00000001:1.png", png(1), {"title": 'a "dog", asleep', "n": "8"})


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    captions=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=7),
    separator=st.sampled_from([",", "\t", ";"]),
    shard_samples=st.integers(1, 8),
)
def test_output_of_the_csv_module_is_read(
    root: Path, captions: list[tuple[str, str]], separator: str, shard_samples: int
) -> None:
    path = root / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = [("caption", "path", "other"), *((c, "1.png", o) for c, o in captions)]
        csv.writer(file, delimiter=separator).writerows(lines)
    source = Table([path], separator=separator, shard_samples=shard_samples)
    texts = [(raw.text["caption"], raw.text["other"]) for raw in rows(source)]
    assert texts == captions
    assert source.sizes.sum() == len(captions)
    keys = [source.key(s, n) for s, size in enumerate(source.sizes) for n in range(size)]
    assert keys == [f"{n:08d}:1.png" for n in range(len(captions))]


def test_the_index_that_pandas_writes_is_a_column_without_a_name(root: Path) -> None:
    content = ',filepath,title\n0,0.png,plain\n1,1.png,"two\nlines, ""quoted"""\n'
    first, second = rows(opened(written(root, content)))
    assert first.text == {"": "0", "title": "plain"}
    assert second.text == {"": "1", "title": 'two\nlines, "quoted"'}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.png", "line 3 has 1 columns, the first line of the table 2"),
        ("1.png,a,b", "line 3 has 3 columns"),
        ('1.png,"The Thinker" statue', "line 3 does not parse: ',' expected after '\"'"),
        ('1.png,"never closed', "line 3 does not parse: unexpected end of data"),
        ('1.png,"' + "x" * 140_000, "line 3 does not parse: field larger than field limit"),
    ],
)
def test_a_line_that_does_not_parse_costs_one_row(root: Path, line: str, message: str) -> None:
    path = written(root, "\n".join(["path,caption", "0.png,zero", line, "2.png,two", ""]))
    source = opened(path)
    assert source.sizes.tolist() == [3]
    assert [source.read(0, n).text["caption"] for n in (0, 2)] == ["zero", "two"]
    with pytest.raises(SampleError, match=re.escape(message)) as caught:
        source.read(0, 1)
    assert caught.value.stage == "read"
    assert source.key(0, 1) == "00000001"


def test_quotes_that_are_never_closed_lose_no_line(root: Path) -> None:
    lines = [f'{n % 5}.png,"open {n}' if n % 10 == 3 else f"{n % 5}.png,{n}" for n in range(60)]
    source = opened(written(root, "\n".join(["path,caption", *lines])))
    assert source.sizes.tolist() == [60]
    for n in range(60):
        if n % 10 == 3:
            with pytest.raises(SampleError, match=f"line {n + 2} "):
                source.read(0, n)
        else:
            assert source.read(0, n).text == {"caption": str(n)}


def test_a_cell_that_is_not_utf8_costs_no_other(root: Path) -> None:
    lines = b"path,caption,n\n0.png,caf\xe9,x\n1.png,caf\xc3\xa9,y\n"
    first, second = rows(opened(written(root, lines)))
    assert first.text == {"caption": b"caf\xe9", "n": "x"}
    assert second.text == {"caption": "caf\u00e9", "n": "y"}


# --- images ---


@pytest.mark.parametrize("column", table.IMAGE_COLUMNS)
def test_the_usual_names_of_the_image_column_are_known(root: Path, column: str) -> None:
    (raw,) = rows(opened(written(root, f"caption,{column}\nx,1.png\n")))
    assert (raw.image, raw.text) == (png(1), {"caption": "x"})


def test_a_named_image_column_comes_first(root: Path) -> None:
    path = written(root, "path,mine\nx,1.png\n")
    (raw,) = rows(opened(path, image_column="mine"))
    assert (raw.image, raw.text) == (png(1), {"path": "x"})


def test_paths_are_relative_to_the_table_or_to_the_root(root: Path, tmp_path: Path) -> None:
    (root / "tables").mkdir()
    path = written(root, f"path,c\n../0.png,x\n{tmp_path}/1.png,x\n", "tables/t.csv")
    assert [raw.image for raw in rows(opened(path))] == [png(0), png(1)]
    path = written(root, "path,c\n2.png,x\n", "tables/t.csv")
    assert rows(opened(path, image_root=str(root)))[0].image == png(2)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "the row has no image path"),
        ("https://example.org/1.jpg", r"https://example\.org/1\.jpg is a URL"),
        ("a\0b", "is not a path"),
    ],
)
def test_an_invalid_path_is_a_fault_of_the_image(root: Path, cell: str, message: str) -> None:
    source = opened(written(root, f"path,caption\n0.png,x\n{cell},x\n"))
    with pytest.raises(SampleError, match=message) as caught:
        source.read(0, 1)
    assert caught.value.stage == "image"


def test_a_missing_image_is_an_error_of_reading(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        rows(opened(written(root, "path,caption\ngone.png,x\n")))


# --- Parquet ---


def parquet_file(path: Path, columns: dict[str, Any], *, group: int = 2) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_parquet_of_paths_has_text_lists_of_it_and_numbers(root: Path) -> None:
    columns = {
        "caption": ["a", "b", None],
        "path": ["0.png", "1.png", "2.png"],
        "many": [["x", "y"], [], None],
        "kind": pa.array(["k", "k", "l"]).dictionary_encode(),
        "width": [1, 2, 3],
    }
    source = Table([parquet_file(root / "t.parquet", columns)], shard_samples=2)
    assert source.sizes.tolist() == [2, 1]
    assert rows(source) == [
        Raw(
            "00000000:0.png", png(0), {"caption": "a", "many": ["x", "y"], "kind": "k", "width": 1}
        ),
        Raw("00000001:1.png", png(1), {"caption": "b", "many": [], "kind": "k", "width": 2}),
        Raw("00000002:2.png", png(2), {"kind": "l", "width": 3}),
    ]


def huggingface(images: Sequence[bytes | None]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)]


@pytest.mark.parametrize("kind", ["binary", "large binary", "struct"])
def test_parquet_with_images_inside_has_a_shard_for_each_row_group(root: Path, kind: str) -> None:
    images = [jpeg(n) for n in range(5)]
    column: Any = huggingface(images) if kind == "struct" else images
    if kind == "large binary":
        column = pa.array(images, pa.large_binary())
    texts = {"caption": list("abcde"), "path": ["no file"] * 5}
    source = opened(parquet_file(root / "t.parquet", texts | {"image": column}))
    assert source.sizes.tolist() == [2, 2, 1]
    assert rows(source) == [
        Raw(f"{n:08d}", images[n], {"caption": "abcde"[n], "path": "no file"}) for n in range(5)
    ]


def test_a_row_without_its_image_is_a_fault_of_the_image(root: Path) -> None:
    columns = {"image": huggingface([jpeg(0), None]), "caption": ["a", "b"]}
    source = opened(parquet_file(root / "t.parquet", columns))
    assert source.read(0, 0).image == jpeg(0)
    with pytest.raises(SampleError, match="no bytes in column 'image'") as caught:
        source.read(0, 1)
    assert caught.value.stage == "image"


@pytest.mark.parametrize("kind", ["paths", "images"])
@pytest.mark.parametrize("stored", ["plain", "large", "view", "list"])
def test_a_text_of_parquet_that_is_not_utf8_costs_its_row(
    root: Path, kind: str, stored: str
) -> None:
    values = pa.array([b"one", b"caf\xe9", b"three", None])
    types = {"plain": pa.string(), "large": pa.large_string(), "view": pa.string_view()}
    columns: dict[str, Any] = {"path": [f"{n}.png" for n in range(4)]}
    if kind == "images":
        columns = {"image": huggingface([png(n) for n in range(4)])}
    if stored == "list":
        items = values.cast(pa.string(), safe=False)
        caption = pa.ListArray.from_arrays([0, 1, 2, 3, 4], items)
    else:
        caption = values.cast(types[stored], safe=False)
    table = pa.table(columns | {"caption": caption})
    parquet.write_table(table, root / "t.parquet", row_group_size=4)
    source = opened(root / "t.parquet")
    assert len(source.digests) == 1
    fields = CaptionFields({"caption": 1.0})
    assert [fields.of(source.read(0, n)).texts for n in (0, 2)] == [["one"], ["three"]]
    with pytest.raises(SampleError, match="not UTF-8"):
        fields.of(source.read(0, 1))
    with pytest.raises(SampleError, match="no text in caption"):
        fields.of(source.read(0, 3))


def test_a_path_of_parquet_that_is_not_utf8_is_a_path(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (root / name).write_bytes(png(7))
    path = pa.array([b"caf\xe9.png"]).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"path": path, "c": ["x"]}), root / "t.parquet")
    (row,) = rows(opened(root / "t.parquet"))
    assert (row.key, row.image) == (f"00000000:{name}", png(7))


def test_two_columns_of_parquet_with_one_name_are_refused(root: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["0.png"])] * 3, names=["path", "c", "c"])
    parquet.write_table(table, root / "t.parquet")
    with pytest.raises(UserError, match=r"table .*t\.parquet has two columns 'c'; rename one"):
        opened(root / "t.parquet")


def test_row_groups_are_kept_up_to_a_bound(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [bytes([n]) * 1000 for n in range(12)]
    path = parquet_file(root / "t.parquet", {"image": images, "c": ["x"] * 12}, group=1)
    source = opened(path)
    monkeypatch.setattr(_parquet, "CACHE_BYTES", 3500)
    _parquet._cache.cache_clear()
    read: list[int] = []
    read_group = parquet.ParquetFile.read_row_group

    def counted(file: Any, group: int, *args: Any, **options: Any) -> pa.Table:
        read.append(group)
        return read_group(file, group, *args, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    for n in (0, 1, 2, 0, 3, 0, 1):
        assert source.read(n, 0).image == images[n]
    assert read == [0, 1, 2, 3, 1]  # three fit; 1 was the least recently used
    monkeypatch.setattr(_parquet, "CACHE_BYTES", 10)
    assert [source.read(n, 0).image for n in (5, 5, 6)] == [images[5], images[5], images[6]]
    assert read[5:] == [5, 6]


def test_a_file_that_changed_after_opening_is_an_error_of_reading(root: Path) -> None:
    columns = {"image": [jpeg(0), jpeg(1)], "caption": ["a", "b"]}
    path = parquet_file(root / "t.parquet", columns)
    source = opened(path)
    parquet_file(path, {"image": [jpeg(0)], "caption": ["a"]})
    with pytest.raises(OSError, match=r"t\.parquet has changed"):
        source.read(0, 0)
    _parquet._cache.cache_clear()
    path.write_bytes(b"PAR1 <html>")
    with pytest.raises(OSError, match=r"t\.parquet"):
        source.read(0, 0)


def test_a_row_group_beyond_memory_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_file(root / "t.parquet", {"image": [jpeg(0)] * 4, "caption": ["a"] * 4}, group=4)
    monkeypatch.setattr(_parquet, "MAX_GROUP_BYTES", 100)
    with pytest.raises(UserError, match=r"row group 0 of table .*t\.parquet has .* GiB.*smaller"):
        opened(path)


# --- several tables, or none ---


def test_tables_come_in_the_order_given_and_globs_sorted(root: Path) -> None:
    written(root, "path,c\n0.png,a\n", "b.csv")
    written(root, "path\tc\n1.png\tb\n", "a.tsv")
    written(root, "path,c\n2.png,c\n3.png,d\n", "c.csv")
    source = opened([root / "c.csv", root / "[ab].*sv"])
    assert source.sizes.tolist() == [2, 1, 1]
    assert [raw.text["c"] for raw in rows(source)] == ["c", "d", "b", "a"]
    names = [source.name(n) for n in range(3)]
    assert names == [f"{root}/c.csv#0", f"{root}/a.tsv#0", f"{root}/b.csv#0"]


@pytest.mark.parametrize(
    ("name", "content", "options", "complaint"),
    [
        ("t.csv", "filepath\ttitle\n0.png\tx\n", {}, r"columns are 'filepath\\ttitle' .*tab: try"),
        ("t.tsv", "path,c\n0.png,x\n", {}, r"split at '\\t'; there is a comma: try separator: ','"),
        ("t.csv", "a,b\n0.png,x\n", {}, r"no image column filepath or .*columns are 'a', 'b'; set"),
        ("t.csv", "path,b\n0.png,x\n", {"image_column": "c"}, "no image column c; its columns"),
        ("t.csv", "path,b,b\n0.png,x,y\n", {}, "two columns 'b'; rename one"),
        ("t.csv", "path,b\n", {}, r"no table of .*t\.csv has a row"),
        ("t.csv", "", {}, "no image column"),
        ("t.csv", 'path,"b\n', {}, r"first line of table .*t\.csv does not parse"),
        ("t.csv", "path,b\n0.png,x".encode("utf-16"), {}, "is UTF-16; save it as UTF-8"),
        ("t.csv", "path,b\nhttps://x.org/0.jpg,x\n", {}, "has URLs for images.*img2dataset"),
        ("t.csv", "path,b\n", {"separator": ", "}, "separator ', ' is not one character"),
        ("t.xlsx", "path,b\n", {}, r"t\.xlsx is none of \.csv, \.tsv and \.parquet"),
        ("t.parquet", "<html>", {}, r"t\.parquet cannot be read as Parquet"),
    ],
)
def test_an_unusable_table_is_refused(
    root: Path, name: str, content: str | bytes, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        opened(written(root, content, name), **options)


def test_a_separator_may_be_written_as_in_a_shell(root: Path) -> None:
    path = written(root, "path\tc\n0.png\tx\n", "t.txt")
    assert rows(opened(path, separator="\\t"))[0].text == {"c": "x"}


def test_parquet_without_an_image_column_names_what_it_has(root: Path) -> None:
    path = parquet_file(root / "t.parquet", {"jpg": [b"x"], "caption": ["x"], "image": [1]})
    expected = r"columns are 'jpg', 'caption' and, neither text nor bytes, 'image' of int64; set"
    with pytest.raises(UserError, match=expected):
        opened(path)
    assert rows(opened(path, image_column="jpg"))[0].image == b"x"


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["gone.csv"], r"table .*gone\.csv is not a file"),
        (["*.parquet"], r"table .*\*\.parquet is not a file"),
        (["."], "give a .csv, .tsv or .parquet file, or a glob"),
        (["t.csv", "*.csv"], r"t\.csv is listed twice"),
        ([], "path is an empty list"),
    ],
)
def test_missing_tables_are_named(root: Path, names: list[str], complaint: str) -> None:
    written(root, "path,c\n0.png,x\n")
    with pytest.raises(UserError, match=complaint):
        opened([root / name for name in names])


def test_a_remote_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"table s3://b/t\.csv is remote; copy it"):
        table.Config(path="s3://b/t.csv").build()


def test_csv_needs_no_pyarrow_and_parquet_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet_file(root / "t.parquet", {"path": ["0.png"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert len(rows(opened(written(root, "path,c\n0.png,x\n")))) == 1
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'clipx-train\[table\]'"):
        opened(path)


# --- digests ---


@pytest.mark.parametrize("kind", ["csv", "parquet", "images"])
def test_digests_name_the_shards_that_changed(root: Path, kind: str) -> None:
    def digests(captions: str, *images: int) -> Sequence[str]:
        names = [f"{n}.png" for n in images]
        if kind == "csv":
            lines = ["path,c", *map(",".join, zip(names, captions, strict=True))]
            path = written(root, "\n".join(lines))
        else:
            column = [jpeg(n, (20 + n, 16)) for n in images] if kind == "images" else names
            path = parquet_file(root / "t.parquet", {"path": column, "c": list(captions)})
        return Table([path], shard_samples=2).digests

    old = digests("abcde", 0, 1, 2, 3, 4)
    assert digests("abcde", 0, 1, 2, 3, 4) == old
    for changed in (digests("abcxe", 0, 1, 2, 3, 4), digests("abcde", 0, 1, 2, 0, 4)):
        assert [a == b for a, b in zip(old, changed, strict=True)] == [True, False, True]
    assert digests("abcd", 0, 1, 2, 3) == old[:2]


def test_a_change_of_equal_length_and_extremes_is_noticed(root: Path) -> None:
    """Two captions are exchanged."""

    def digests(captions: list[str]) -> Sequence[str]:
        columns = {"path": [jpeg(0)] * 4, "c": captions}
        return Table([parquet_file(root / "t.parquet", columns, group=4)]).digests

    (old,) = digests(["a", "c", "b", "d"])
    (new,) = digests(["a", "b", "c", "d"])
    assert old.partition(":")[0] == new.partition(":")[0]
    assert old != new
