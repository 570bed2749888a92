"""What tables of samples need of Arrow: types, texts that may be no UTF-8, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipx.data.tar import SIDE

if TYPE_CHECKING:
    import pyarrow


def faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises for files that are damaged."""
    import pyarrow

    return (OSError, ValueError, MemoryError, pyarrow.ArrowException)


def as_bytes(table: pyarrow.Table) -> pyarrow.Table:
    """With bytes for texts, so that one row which is not UTF-8 costs that row."""
    import pyarrow

    fields = [field.with_type(_bytes_type(field.type)) for field in table.schema]
    return table.cast(pyarrow.schema(fields))


def _bytes_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of the same values as bytes."""
    import pyarrow
    from pyarrow import types

    if types.is_struct(kind):
        inner = [kind.field(n) for n in range(kind.num_fields)]
        return pyarrow.struct([field.with_type(_bytes_type(field.type)) for field in inner])
    if types.is_list(kind) or types.is_large_list(kind):
        item = kind.value_field.with_type(_bytes_type(kind.value_type))
        return pyarrow.list_(item) if types.is_list(kind) else pyarrow.large_list(item)
    if types.is_dictionary(kind):  # Arrow itself refuses those that are not UTF-8
        return _bytes_type(kind.value_type)
    if types.is_string_view(kind):
        return pyarrow.binary_view()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    return pyarrow.binary() if types.is_string(kind) else kind


def decoded(value: Any) -> Any:
    """Texts of bytes that are UTF-8, also in lists; other bytes as they are."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def is_text(kind: pyarrow.DataType) -> bool:
    """Text, or lists of it."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_image(kind: pyarrow.DataType) -> bool:
    """Binary, or a struct with the binary field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def content_digest(file: Path, chunks: Sequence[Any]) -> str:
    """SHA-1 over the first and last SIDE bytes of each column of a row group. Raises OSError."""
    sha = hashlib.sha1()
    with file.open("rb") as opened:
        for chunk in chunks:
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            end = start + chunk.total_compressed_size
            for place in (start, max(start, end - SIDE)):
                opened.seek(max(0, place))
                sha.update(opened.read(min(SIDE, max(0, end - place))))
    return sha.hexdigest()
