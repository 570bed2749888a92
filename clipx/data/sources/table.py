"""Tables of image paths and captions (CSV, TSV, Parquet), and Parquet with the images inside.

One column has the image; each other one that holds text is a text field of that name.
"""

from __future__ import annotations

import glob
from collections import Counter
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
NO_IMAGES = "none"
"""Instead of the image column: a table of texts."""
SHARD_SAMPLES = 10_000


@config
class Config:
    """Rows are samples, in the order of the files and their rows."""

    path: str | list[str]
    """A `.csv`, `.tsv` or `.parquet` file, a glob, or a list of these. The first line of a CSV or
    TSV file names the columns."""
    image_column: str | None = None
    """Column of the image's path, or in Parquet its bytes. null: the first that exists of
    filepath, image_path, path, image, file_name, filename; none: a table of texts alone."""
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
        wanted = IMAGE_COLUMNS if image_column is None else (image_column,)
        if image_column == NO_IMAGES:
            wanted = ()
        self._root = image_root
        self._shards: list[tuple[Path, int, Rows]] = []  # (file, number in the file, rows)
        self.digests = []
        sizes = []
        fields = set()
        for file in files:
            parts = _open_table(file, wanted, separator=separator, shard_samples=shard_samples)
            for number, rows in enumerate(parts):
                self._shards.append((file, number, rows))
                self.digests.append(rows.digest)
                sizes.append(rows.size)
                fields |= rows.fields
        if not self._shards:
            raise UserError(f"no table of {', '.join(map(str, files))} has a row")
        self.fields = frozenset(fields)
        self.sizes = np.array(sizes, dtype=np.int64)

    def name(self, shard: int) -> str:
        file, number, _ = self._shards[shard]
        return f"{file}#{number}"

    def key(self, shard: int, sample: int) -> str:
        """`00000017:a/b.jpg`: the row in its file, and the path if the table has one."""
        _, _, rows = self._shards[shard]
        path = rows.path(sample)
        return f"{rows.first + sample:08d}" + (f":{path}" if path else "")

    def identity(self, shard: int, sample: int) -> str:
        """The path of the image; the row in its file where the table has no paths."""
        _, _, rows = self._shards[shard]
        return rows.path(sample) or self.key(shard, sample)

    def read(
        self,
        shard: int,
        sample: int,
        *,
        max_image_bytes: int = MAX_BYTES,
        images: Sequence[str] | None = None,
    ) -> Raw:
        """images: columns of paths or, in Parquet, of bytes"""
        _, _, rows = self._shards[shard]
        text = rows.text(sample)  # first: a row that does not parse has no path either
        pictures = []
        for column in (None,) if images is None else images:
            pictures.append(self._image(shard, sample, column, max_image_bytes))
        first, second, *_ = [*pictures, b"", b""]
        return Raw(self.key(shard, sample), first, text, second_image=second)

    def _image(self, shard: int, sample: int, column: str | None, max_image_bytes: int) -> bytes:
        """An encoded image. column: None for the table's image column"""
        file, _, rows = self._shards[shard]
        image = rows.image(sample, column)
        if image is not None:
            check_size(len(image), max_image_bytes)
            return image

        # The table has a path. A bad one costs this sample only.
        path = rows.path(sample, column)
        if not path:
            raise SampleError("image", "the row has no image path")
        try:
            path = local_path(path)
        except UserError as error:
            raise SampleError("image", str(error)) from error
        if "://" in path:
            raise SampleError("image", f"{path} is a URL, not a path")
        if "\0" in path:
            raise SampleError("image", f"{path!r} is not a path: it has a zero byte")
        root = file.parent if self._root is None else self._root
        return read_image_file(root / path, max_image_bytes)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Local files are read when they are needed."""


def find(patterns: str | list[str]) -> list[Path]:
    """Find the files of a pattern or a list of them. Raises UserError."""
    files = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        pattern = local_path(pattern)
        if "://" in pattern:
            raise UserError(f"table {pattern} is remote; copy it to this machine first")
        matches = [Path(pattern)]
        if glob.has_magic(pattern):
            matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 absolute patterns
        wrong = [path for path in matches if not path.is_file()]
        if wrong or not matches:
            raise UserError(
                f"table {wrong[0] if wrong else pattern} is not a file (looked from {Path.cwd()}); "
                "give a .csv, .tsv or .parquet file, or a glob such as 'data/*.parquet'"
            )
        files += matches
    if not files:
        raise UserError("no table is given: path is an empty list")
    path, count = Counter(files).most_common(1)[0]
    if count > 1:
        raise UserError(f"table {path} is listed twice; remove one of the patterns that match it")
    return files


def _open_table(
    file: Path, wanted: Sequence[str], *, separator: str | None, shard_samples: int
) -> Sequence[Rows]:
    """Read the shards of one file. Raises UserError."""
    suffix = file.suffix.lower()
    shards: Sequence[Rows]
    if suffix in (".parquet", ".pq"):
        shards = _parquet.open_rows(file, wanted, shard_samples=shard_samples)
    elif suffix in (".csv", ".tsv") or separator is not None:
        separator = separator or ("\t" if suffix == ".tsv" else ",")
        shards = _csv.open_rows(file, wanted, separator=separator, shard_samples=shard_samples)
    else:
        raise UserError(
            f"table {file} is none of .csv, .tsv and .parquet; for text set its separator"
        )
    # The first row is enough: a table of URLs has them everywhere.
    path = shards[0].path(0) if shards else ""  # a table of texts has none
    if "://" in path and not path.lower().startswith("file://"):
        raise UserError(
            f"table {file} has URLs for images, such as {path}; download them first, for example "
            "with img2dataset, and open its output with name: webdataset"
        )
    return shards
