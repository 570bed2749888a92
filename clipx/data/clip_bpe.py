"""OpenAI's byte-pair encoding, with the token ids of open_clip's SimpleTokenizer."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

from clipx.data.text_repair import CLEAN, repaired

_MAX_WORD_CHARACTERS = 2**16  # two thousand of the longest tokens
_NO_ID = 1 << 32
_MERGED = -1
_SHORT = 64  # symbols up to which a search of all pairs is faster than a heap


class ClipBPE:
    """Words are encoded one by one, since no token spans a space, and their ids remembered."""

    pad_id = 0
    start = 49406
    end = 49407
    largest_id = 49407
    special_ids = frozenset({pad_id, start, end})  # "!" has the id of padding, as in open_clip

    def __init__(self, clean: str = "lower") -> None:
        self.state = f"ClipBPE {clean}"
        self._clean = CLEAN[clean]
        self._ids = _WordIds()

    def encode(self, text: str, context_length: int) -> list[int]:
        ids = [self.start]
        for word in self._clean(repaired(text)).split():
            # Merges span a few dozen characters, so that cutting a word keeps its first ids.
            ids += self._ids[word[:_MAX_WORD_CHARACTERS]]
            if len(ids) >= context_length:
                break
        del ids[context_length - 1 :]
        ids.append(self.end)
        return ids


class _WordIds(dict[str, list[int]]):
    """Token ids of texts without whitespace, computed where missing and remembered in bounds."""

    max_words = 2**18  # 80 MB; else noise words fill the memory of a run of months
    max_characters = 64  # longer words are addresses and the like, which seldom come twice

    @cached_property
    def _reference(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    @cached_property
    def _joined(self) -> dict[int, int]:
        """`first << 16 | second` -> id of both symbols as one. Ids are numbered in the order in
        which pairs were learned."""
        joined = {}
        encoder = self._reference.encoder
        for first, second in self._reference.bpe_ranks:
            joined[encoder[first] << 16 | encoder[second]] = encoder[first + second]
        return joined

    @cached_property
    def _byte_ids(self) -> list[int]:
        encoder = self._reference.encoder
        return [encoder[self._reference.byte_encoder[byte]] for byte in range(256)]

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= self.max_words:
            self.clear()
        tokens = [word] if word.isalpha() else self._reference.pat.findall(word)
        if word in ("<start_of_text>", "<end_of_text>"):
            ids = [self._reference.encoder[word]]
        elif tokens == [word]:
            ids = [self._byte_ids[byte] for byte in word.encode()]
            ids[-1] += 256  # the symbol of the same byte at the end of a word
            # Replace the pair that was learned first by one symbol, until no known pair is left.
            # The reference replaces all places of a pair at once. Here it is one place at a time,
            # with the same result, since no pair with the new symbol was learned before it.
            merge = _merge_short if len(ids) <= _SHORT else _merge_long
            ids = merge(ids, self._joined)
        else:
            ids = []
            for token in tokens:
                ids += self[token]
        if len(word) <= self.max_characters:
            self[word] = ids
        return ids


def _merge_short(ids: list[int], joined: Mapping[int, int]) -> list[int]:
    """O(n^2), with a small factor."""
    get = joined.get
    pairs = [get(a << 16 | b, _NO_ID) for a, b in pairwise(ids)]
    while pairs and (new := min(pairs)) != _NO_ID:
        i = pairs.index(new)
        ids[i] = new
        del ids[i + 1], pairs[i]
        if i < len(pairs):
            pairs[i] = get(new << 16 | ids[i + 1], _NO_ID)
        if i:
            pairs[i - 1] = get(ids[i - 1] << 16 | new, _NO_ID)
    return ids


def _merge_long(ids: list[int], joined: Mapping[int, int]) -> list[int]:
    """O(n log n): the same merges in the same order, the leftmost of a pair first."""
    count = len(ids)
    previous = list(range(-1, count - 1))
    following = list(range(1, count + 1))
    heap: list[tuple[int, int]] = []  # (id of the pair, place of its first symbol)

    def push(left: int, right: int) -> None:
        new = joined.get(ids[left] << 16 | ids[right])
        if new is not None:
            heapq.heappush(heap, (new, left))

    for left in range(count - 1):
        push(left, left + 1)
    while heap:
        new, left = heapq.heappop(heap)
        right = following[left]
        # One of the two symbols may have been merged with another since the pair was pushed.
        if ids[left] == _MERGED or right == count:
            continue
        if joined.get(ids[left] << 16 | ids[right]) != new:
            continue
        ids[left] = new
        ids[right] = _MERGED
        following[left] = following[right]
        if following[left] < count:
            previous[following[left]] = left
            push(left, following[left])
        if previous[left] >= 0:
            push(previous[left], left)
    return [symbol for symbol in ids if symbol != _MERGED]
