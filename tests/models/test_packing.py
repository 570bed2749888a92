"""Captions in rows, one for each distinct prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_gradients import assert_same_with_gradients
from torch import Tensor

from clipx.models.packing import RowIndex, group_by_length, number_prefixes, pack
from clipx.models.text_transformer import TextTransformer, end_of

END = 9
# Few words, so that many captions begin alike or are equal; [END] is one that was empty.
CAPTIONS = st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=30)


def padded(captions: list[list[int]]) -> Tensor:
    rows = torch.zeros(len(captions), 1 + max(map(len, captions)), dtype=torch.int64)
    for row, caption in zip(rows, captions, strict=True):
        row[: len(caption) + 1] = torch.tensor([*caption, END])
    return rows


def prefix(text: Tensor, caption: int, position: int) -> tuple[int, ...]:
    return tuple(text[caption, : position + 1].tolist())


@settings(deadline=None)
@given(CAPTIONS, st.booleans())
def test_equal_prefixes_and_no_others_have_one_number(
    captions: list[list[int]], truncated: bool
) -> None:
    """Whether or not captions end in an end token, which decides how far they count."""
    text = padded(captions)
    if truncated:
        text[0, end_of(text)[0]] = 0
    end = end_of(text)
    number, is_first = number_prefixes(text, end)
    tokens = [(b, t) for b in range(len(text)) for t in range(int(end[b]) + 1)]
    by_number = {int(number[b, t]): prefix(text, b, t) for b, t in tokens}
    assert all(by_number[int(number[b, t])] == prefix(text, b, t) for b, t in tokens)
    assert len(set(by_number.values())) == len(by_number)
    firsts = [int(number[b, t]) for b, t in is_first.nonzero().tolist()]
    assert sorted(firsts) == list(range(len(by_number)))


@settings(deadline=None)
@given(CAPTIONS, st.sampled_from([0, 3, 1000]), st.booleans())
def test_every_token_finds_its_id_and_position_in_its_row(
    captions: list[list[int]], padding: int, share: bool
) -> None:
    text = padded(captions)
    end = end_of(text)
    packed = pack(text, end, padding=padding, share=share)
    packing, start = packed.packing, 0
    ids, positions = (
        packing.to_places(x[:, None].double()) for x in (packed.ids, packed.positions)
    )
    sequences = [tokens for count, tokens in packing.groups for _ in range(count)]
    for caption, tokens in zip(packed.order.tolist(), sequences, strict=True):
        length = int(end[caption]) + 1
        places = slice(start, start + length)
        assert ids[places, 0].tolist() == text[caption, :length].tolist()
        assert positions[places, 0].tolist() == list(range(length))
        start += tokens
    assert start == len(ids)
    assert packing.to_rows(ids)[:, 0].tolist() == packed.ids.tolist()
    last = packing.rows_at(packed.end)
    assert packed.ids[last].tolist() == text[packed.order, end[packed.order]].tolist()
    if share:
        distinct = {prefix(text, b, t) for b in range(len(text)) for t in range(int(end[b]) + 1)}
        assert len(packed.ids) == len(distinct)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_rows_that_are_taken_get_the_sum_of_their_gradients(index: list[int]) -> None:
    """A row that is not taken gets zero."""
    rows = torch.tensor(index)
    x = torch.randn(10, 8, dtype=torch.float64, requires_grad=True)
    actual, expected = RowIndex.of(rows, 10).take(x), x[rows]
    assert torch.equal(actual, expected)
    assert_same_with_gradients(actual, expected, [x], 3e-14)


def test_a_row_that_all_captions_take_loses_no_gradient_in_bfloat16() -> None:
    """4,096 ones added one by one to a bfloat16 sum stop at 256."""
    x = torch.zeros(1, 16, dtype=torch.bfloat16, requires_grad=True)
    y = RowIndex.of(torch.zeros(4096, dtype=torch.int64), 1).take(x)
    assert torch.autograd.grad(y.sum(), x)[0].eq(4096).all()


TEXT: dict[str, Any] = {"context_length": 7, "vocab_size": 10, "width": 32, "heads": 2, "layers": 3}


def tower() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(16, TEXT, quick_gelu=False).double()


@settings(max_examples=20, deadline=None)
@given(CAPTIONS)
def test_captions_that_begin_alike_have_the_features_and_gradients_of_each_alone(
    captions: list[list[int]],
) -> None:
    model, text = tower(), padded(captions)
    alone = torch.cat([model(row[None]) for row in text])
    # float64 sums in another order
    assert_same_with_gradients(model(text), alone, list(model.parameters()), 1e-12)


def test_layers_work_on_each_distinct_prefix_once() -> None:
    model, rows = tower(), []
    for block in model.transformer.resblocks:
        block.mlp.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    model(padded([[1, 2, 3], [1, 2, 1], [1, 2, 3], [2]]))
    # 1, 12, 123, 123E; 121, 121E; 2, 2E; the last block only reads the ends of the captions
    assert rows == [8, 8, 4]


def test_a_caption_that_is_not_finite_spoils_none_that_begins_otherwise() -> None:
    model = tower()
    with torch.no_grad():
        model.token_embedding.weight[3] = torch.nan
    text = padded([[1, 2, 3], [2, 1, 1], [2], [2, 2, 2, 2, 2, 2], [1, 2, 1, 3]])
    assert model(text).isfinite().all(1).tolist() == [False, True, True, True, False]


def test_a_large_batch_has_few_shapes_and_the_features_of_its_captions_alone() -> None:
    """Rows fill up to a multiple of 64, and groups have a multiple of 16 captions."""
    model = tower()
    shapes = set()
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 6, (256 + seed,), generator=random)
        text = padded([[1 + (seed + i * n) % 8 for n in range(k)] for i, k in enumerate(lengths)])
        packed = pack(text, end_of(text), padding=50, share=True)
        assert packed.packing is not None
        assert all(count % 16 == 0 for count, _ in packed.packing.groups[:-1])
        shapes.add(len(packed.ids))
        if seed == 0:
            some = slice(None, None, 5)
            alone = torch.cat([model(row[None]) for row in text[some]])
            together = model(text)[some]
            assert_same_with_gradients(together, alone, list(model.parameters()), 1e-12)
    assert all(rows % 64 == 0 for rows in shapes)
    assert len(shapes) < 8


@given(st.lists(st.integers(2, 77), min_size=1, max_size=600), st.sampled_from([0, 100, 4000]))
def test_groups_hold_every_caption_and_waste_little(lengths: list[int], padding: int) -> None:
    lengths = sorted(lengths)
    groups = group_by_length(lengths, padding)
    assert sum(count for count, _ in groups) == len(lengths)
    start = 0
    for count, tokens in groups:
        group = lengths[start : start + count]
        assert max(group) == tokens
        assert count * tokens - sum(group) <= padding
        start += count


@pytest.mark.parametrize("share", [False, True])
def test_one_caption_is_packed_too(share: bool) -> None:
    text = torch.tensor([[1, END, 0]])
    packed = pack(text, end_of(text), padding=0, share=share)
    assert packed.packing.groups == [(1, 2)]
    assert packed.ids.tolist() == [1, END]
