"""Tables of image paths and captions (CSV, TSV, Parquet), and Parquet with the images inside.

One column has the image; every other one that holds text is a text field by its name.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipx.config import config
from clipx.data.decode import MAX_BYTES
from clipx.data.sample import BadSample, Raw, SampleError
from clipx.data.sample_files import check_size, local_path, read_image_file
from clipx.data.sources import _csv, _parquet
from clipx.data.sources._rows import Rows
from clipx.types import UserError

IMAGE_COLUMNS = ("filepath", "image_path", "path", "image", "file_name", "filename")
SHARD_SAMPLES = 10_000


@config
class Config:
    """Rows are samples, in the order of the files and their rows."""

    path: str | list[str]
    """A `.csv`, `.tsv` or `.parquet` file, a glob, or a list of these. The first line of a CSV or
    TSV file names the columns."""
    image_column: str | None = None
    """Column of the image's path, or in Parquet its bytes. null: the first that there is of
    filepath, image_path, path, image, file_name, filename."""
    image_root: str | None = None
    """Folder that image paths start from. null: the folder of the table."""
    separator: str | None = None
    r"""Between the columns of a CSV file, one character. null: tab in `.tsv`, comma elsewhere. What
    open_clip reads is separated by tabs: "\t"."""

    def build(self) -> Table:
        return Table(
            find(self.path),
            image_column=self.image_column,
            image_root=None if self.image_root is None else Path(self.image_root),
            separator=self.separator,
        )


class Table:
    """See `clipx.data.sample.Source`. A shard is a run of rows, or a row group with images inside.

    Digests cover the rows and not the image files that they name; of row groups with images
    inside, they cover the sizes, extreme values and ends of the columns.
    """

    is_remote = False
    faults: Sequence[BadSample] = ()

    def __init__(
        self,
        files: Sequence[Path],
        *,
        image_column: str | None = None,
        image_root: Path | None = None,
        separator: str | None = None,
        shard_samples: int = SHARD_SAMPLES,
    ) -> None:
        """Raises UserError."""
        wanted = (image_column,) if image_column is not None else IMAGE_COLUMNS
        self._shards: list[tuple[Path, int, Rows]] = []  # (file, number in the file, rows)
        for file in files:
            rows = open_table(file, wanted, separator=separator, shard_samples=shard_samples)
            _refuse_urls(file, rows)
            self._shards += [(file, number, part) for number, part in enumerate(rows)]
        if not self._shards:
            raise UserError(f"no table of {', '.join(map(str, files))} has a row")
        self._root = image_root
        self.fields = frozenset(name for _, _, rows in self._shards for name in rows.fields)
        self.sizes = np.array([len(rows) for _, _, rows in self._shards], dtype=np.int64)

    @property
    def digests(self) -> Sequence[str]:
        return [rows.digest for _, _, rows in self._shards]

    def name(self, shard: int) -> str:
        file, number, _ = self._shards[shard]
        return f"{file}#{number}"

    def key(self, shard: int, sample: int) -> str:
        """`00000017:a/b.jpg`: the row in its file, and the path if the table has one."""
        rows = self._shards[shard][2]
        path = rows.path(sample)
        return f"{rows.first + sample:08d}" + (f":{path}" if path else "")

    def read(self, shard: int, sample: int, *, max_image_bytes: int = MAX_BYTES) -> Raw:
        file, _, rows = self._shards[shard]
        text = rows.text(sample)
        image = rows.image(sample)
        if image is None:
            root = file.parent if self._root is None else self._root
            image = read_image(root, rows.path(sample), max_image_bytes)
        else:
            check_size(len(image), max_image_bytes)
        return Raw(self.key(shard, sample), image, text)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Local files are read when they are needed."""


def find(patterns: str | list[str]) -> list[Path]:
    """The files of a pattern or a list of them. Raises UserError."""
    files: list[Path] = []
    for pattern in map(local_path, [patterns] if isinstance(patterns, str) else patterns):
        if "://" in pattern:
            raise UserError(f"table {pattern} is remote; copy it to this machine first")
        if glob.has_magic(pattern):
            found = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 absolute patterns
        else:
            found = [Path(pattern)]
        if not found or not all(path.is_file() for path in found):
            wrong = next((path for path in found if not path.is_file()), pattern)
            raise UserError(
                f"table {wrong} is not a file (looked from {Path.cwd()}); "
                "give a .csv, .tsv or .parquet file, or a glob such as 'data/*.parquet'"
            )
        files += found
    if not files:
        raise UserError("no table is given: path is an empty list")
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise UserError(f"table {twice} is listed twice; remove one of the patterns that match it")
    return files


def open_table(
    file: Path, wanted: Sequence[str], *, separator: str | None, shard_samples: int
) -> Sequence[Rows]:
    """The shards of one file. Raises UserError."""
    suffix = file.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _parquet.open_rows(file, wanted, shard_samples=shard_samples)
    if suffix not in (".csv", ".tsv") and separator is None:
        raise UserError(
            f"table {file} is none of .csv, .tsv and .parquet; for text set its separator"
        )
    default = "\t" if suffix == ".tsv" else ","
    return _csv.open_rows(file, wanted, separator=separator or default, shard_samples=shard_samples)


def read_image(root: Path, path: str, max_image_bytes: int) -> bytes:
    """Raises SampleError, TooLarge and OSError."""
    if not path:
        raise SampleError("image", "the row has no image path")
    try:
        path = local_path(path)
    except UserError as error:
        raise SampleError("image", str(error)) from error
    if "://" in path:
        raise SampleError("image", f"{path} is a URL, not a path")
    if "\0" in path:
        raise SampleError("image", f"{path!r} is no path: it has a zero byte")
    return read_image_file(os.path.join(root, path), max_image_bytes)  # noqa: PTH118 5x faster


def _refuse_urls(file: Path, shards: Sequence[Rows]) -> None:
    """Looks at the first row: a table of URLs has them everywhere."""
    path = shards[0].path(0) if shards else ""
    if "://" in path and not path.lower().startswith("file://"):
        raise UserError(
            f"table {file} has URLs for images, such as {path}; download them first, for example "
            "with img2dataset, and open its output with name: webdataset"
        )
