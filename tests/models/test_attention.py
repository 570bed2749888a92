"""Packed sequences against the modules that take them one length at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_gradients import assert_same_with_gradients
from torch import Tensor, nn

from clipx.models.attention import fused_attention, packed_attention
from clipx.models.packing import Groups, Packing
from clipx.models.text_transformer import TextTransformer
from clipx.models.transformer import Block, Transformer

TEXT = {"context_length": 20, "vocab_size": 500, "width": 48, "heads": 3, "layers": 3}
LISTS_OF_GROUPS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5)


def stirred(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Add noise to each parameter, so that a missing bias or gain changes the result."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.to(dtype)


def block(*, causal: bool, **settings: Any) -> Block:
    torch.manual_seed(0)
    made = Block(32, 4, mlp_ratio=1.5, causal=causal, **settings)
    stirred(made)
    return made


def by_sequence(module: Block, x: Tensor, groups: Groups, read: Tensor | None = None) -> Tensor:
    """Each group on its own, by nn.LayerNorm, nn.Linear and their autograd."""
    out, start, row = [], 0, 0
    for count, tokens in groups:
        part = x[start : start + count * tokens].view(count, tokens, -1)
        out.append(
            module(part, None if read is None else read[row : row + count]).reshape(-1, x.shape[1])
        )
        start, row = start + count * tokens, row + count
    return torch.cat(out)


@pytest.mark.parametrize("read_one", [False, True])
@pytest.mark.parametrize(
    ("causal", "quick_gelu", "layer_scale"),
    [(False, False, None), (True, False, None), (True, True, 0.3), (False, True, 0.3)],
)
@settings(max_examples=15, deadline=None)
@given(groups=LISTS_OF_GROUPS)
def test_a_packed_block_equals_its_modules_with_gradients(
    groups: Groups, read_one: bool, causal: bool, quick_gelu: bool, layer_scale: float
) -> None:
    """Whatever the lengths of sequences."""
    module = block(causal=causal, quick_gelu=quick_gelu, layer_scale=layer_scale)
    generator = torch.Generator().manual_seed(1)
    total = sum(count * tokens for count, tokens in groups)
    x = torch.randn(total, 32, generator=generator, dtype=torch.float64).requires_grad_()
    lengths = torch.cat([torch.full((count,), tokens) for count, tokens in groups])
    read = (torch.rand(len(lengths), generator=generator) * lengths).long() if read_one else None
    packed = module(x, read, Packing(groups))
    # float64 sums in another order
    alone = by_sequence(module, x, groups, read)
    assert_same_with_gradients(packed, alone, [x, *module.parameters()], 1e-11)


def test_under_bf16_autocast_a_packed_block_rounds_no_more_than_its_modules() -> None:
    groups = [(40, 5), (60, 17)]
    x = torch.randn(40 * 5 + 60 * 17, 32, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for kind in ("exact", "modules", "packed"):
        module = block(causal=True).to(torch.float64 if kind == "exact" else torch.float32)
        rows = x.to(module.ln_1.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "exact"):
            out = (
                module(rows, None, Packing(groups))
                if kind == "packed"
                else by_sequence(module, rows, groups)
            )
        grads = torch.autograd.grad((out * weight).sum(), [rows, *module.parameters()])
        results.append([out.detach(), *grads])
    for exact, modules, packed in zip(*results, strict=True):
        assert packed.dtype == torch.float32
        error = (packed - exact).norm() / exact.norm()
        # Roundings of 8 bits fall differently; 1e-3 lies below one of them.
        assert error < 1.5 * (modules - exact).norm() / exact.norm() + 1e-3


def test_a_locked_block_computes_no_gradient() -> None:
    module = block(causal=False)
    module.requires_grad_(False)
    x = torch.randn(6, 32, dtype=torch.float64)
    assert not module(x, None, Packing([(2, 3)])).requires_grad
    assert module(x.requires_grad_(), None, Packing([(2, 3)])).requires_grad


def captions(lengths: list[int]) -> Tensor:
    """(B, 20) ids: words, an end token (the highest id), zeros."""
    generator = torch.Generator().manual_seed(3)
    text = torch.zeros(len(lengths), 20, dtype=torch.int64)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randint(1, 498, (length,), generator=generator)
        text[row, length - 1] = 499
    return text


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_packed_captions_equal_each_alone(layer_scale: float | None) -> None:
    """Values in the order of the rows, and gradients."""
    tower = TextTransformer(24, TEXT | {"ls_init_value": layer_scale}, quick_gelu=False)
    stirred(tower)
    lengths = (2 + torch.randperm(300, generator=torch.Generator().manual_seed(3)) % 18).tolist()
    text = captions(lengths)
    some = slice(None, None, 6)
    alone = torch.cat([tower(row[None]) for row in text[some]])
    # float64 sums in another order
    assert_same_with_gradients(tower(text)[some], alone, list(tower.parameters()), 1e-11)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=15, deadline=None)
@given(groups=LISTS_OF_GROUPS)
def test_the_attention_of_gpus_equals_that_of_cpus(groups: Groups, causal: bool) -> None:
    total = sum(count * tokens for count, tokens in groups)
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(total, 3 * 32, generator=generator, dtype=torch.float64).requires_grad_()
    ways = (packed_attention, fused_attention)
    one, other = (way(qkv, groups, heads=4, causal=causal) for way in ways)
    assert_same_with_gradients(one, other, [qkv], 1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_checkpointing_changes_no_gradient(causal: bool) -> None:
    torch.manual_seed(0)
    tower = Transformer(32, 3, 4, causal=causal).double()
    x = torch.randn(5, 7, 32, dtype=torch.float64, requires_grad=True)
    read = torch.tensor([0, 6, 3, 3, 1])
    results = []
    for enable in (False, True):
        tower.grad_checkpointing = enable
        out = tower(x, read)
        results.append(torch.autograd.grad(out.square().sum(), [x, *tower.parameters()]))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
