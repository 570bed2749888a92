"""Damage to valid bytes that reaches deep: flips, cuts, repeats, zeros and splices."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Damage = tuple[str, int, int, bytes]  # kind, place and length as shares of 2^16, bytes
SHARE = st.integers(0, 2**16)
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "repeat", "zero", "insert", "overwrite", "end"]),
        SHARE,
        SHARE,
        st.binary(min_size=1, max_size=40),
    ),
    max_size=4,
)


def damaged(data: bytes, damages: Sequence[Damage], *, longest: int = 2**12) -> bytes:
    """`data` after all damages. longest: bytes that one cut, repeat or row of zeros has"""
    for kind, place, length, content in damages:
        at = place * len(data) >> 16
        stop = min(len(data), at + 1 + (length * longest >> 16))
        if kind == "flip":
            flipped = bytes(byte ^ 1 << length % 8 for byte in data[at : at + 1])
            data = data[:at] + flipped + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[stop:]
        elif kind == "repeat":
            data = data[:stop] + data[at:]
        elif kind == "zero":
            data = data[:at] + bytes(stop - at) + data[stop:]
        elif kind == "insert":
            data = data[:at] + content + data[at:]
        elif kind == "overwrite":
            data = data[:at] + content + data[at + len(content) :]
        else:
            data = data[:at]
    return data


class Content(bytes):
    """Bytes that are shown by how they were made: hypothesis refuses to print long ones."""

    made: str

    def __repr__(self) -> str:
        return self.made


def mutations(originals: Sequence[bytes]) -> SearchStrategy[bytes]:
    """One of the originals after some damage, or any bytes."""

    def mutated(case: tuple[int, list[Damage]]) -> Content:
        number, damages = case
        content = Content(damaged(originals[number], damages))
        content.made = f"damaged(originals[{number}], {damages})"
        return content

    some = st.tuples(st.integers(0, len(originals) - 1), DAMAGES).map(mutated)
    return st.one_of(some, some, some, st.binary(max_size=300))
