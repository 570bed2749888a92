"""Arrow types of text and images, and digests of row groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.data.tar import SIDE

if TYPE_CHECKING:
    import pyarrow


def errors() -> tuple[type[Exception], ...]:
    """The exceptions of pyarrow for damaged files."""
    import pyarrow

    return (OSError, ValueError, MemoryError, pyarrow.ArrowException)


def as_bytes(table: pyarrow.Table) -> pyarrow.Table:
    """Cast text columns to bytes, so that a row which is not UTF-8 costs that row only."""
    import pyarrow

    fields = [field.with_type(_bytes_type(field.type)) for field in table.schema]
    return table.cast(pyarrow.schema(fields))


def _bytes_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of the same values as bytes."""
    import pyarrow
    from pyarrow import types

    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_bytes_type(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        item = kind.value_field.with_type(_bytes_type(kind.value_type))
        return pyarrow.list_(item) if types.is_list(kind) else pyarrow.large_list(item)
    if types.is_dictionary(kind):  # Arrow itself refuses text that is not UTF-8
        return _bytes_type(kind.value_type)
    if types.is_string_view(kind):
        return pyarrow.binary_view()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    return pyarrow.binary() if types.is_string(kind) else kind


def is_text(kind: pyarrow.DataType) -> bool:
    """Text, or lists of it."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_number(kind: pyarrow.DataType) -> bool:
    """Integers, booleans, and floats, which integers become where a column has gaps."""
    from pyarrow import types

    return types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind)


def is_image(kind: pyarrow.DataType) -> bool:
    """Binary, or a struct with the binary field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def group_digest(file: Path, chunks: Sequence[Any], *identity: object) -> str:
    """`layout:content` of a row group: a digest of the sizes and extreme values of its columns, and
    one of the first and last SIDE bytes of each. Raises OSError.

    identity: further values that the layout covers
    """
    layout = hashlib.sha1(ascii(identity).encode())
    content = hashlib.sha1()
    with file.open("rb") as opened:
        for chunk in chunks:
            sizes = (chunk.total_compressed_size, chunk.total_uncompressed_size)
            extremes = None
            statistics = chunk.statistics
            if statistics is not None and statistics.has_min_max:
                try:
                    extremes = (statistics.min, statistics.max)
                except UnicodeDecodeError:
                    extremes = (statistics.min_raw, statistics.max_raw)
            layout.update(ascii((chunk.path_in_schema, sizes, extremes)).encode())
            # A dictionary of values, if any, comes before the pages of data.
            begin = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                begin = min(begin, chunk.dictionary_page_offset)
            end = begin + chunk.total_compressed_size  # may lie beyond a file that was cut
            for place in (begin, max(begin, end - SIDE)):
                opened.seek(max(0, place))
                content.update(opened.read(min(SIDE, max(0, end - place))))
    return f"{layout.hexdigest()}:{content.hexdigest()}"
