"""The classification of images by the tokens of their captions: SuperClass and SuperCLIP."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from stepping import model
from tiny_runs import MODEL
from torch import Tensor

from clipx.data.preprocessing import normalize
from clipx.data.tokenizers import ClipBPE
from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE
from clipx.objectives import bag_of_tokens
from clipx.objectives.bag_of_tokens import BagOfTokens, TokenHead
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import Objective, Parts
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.types import Batch, UserError

START, END = 38, 39
CFG: dict[str, Any] = MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": 40}}
CAPTIONS = [[5, 6, 5], [6, 7], [6, 8, 9, 5], [6]]
"""Tokens of words: 6 is in all captions, 5 twice in the first."""


def batch(captions: list[list[int]] = CAPTIONS, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows = len(captions)
    text = torch.zeros(rows, 7, dtype=torch.int64)
    for row, words in enumerate(captions):
        ids = torch.tensor([START, *words, END])
        text[row, : len(ids)] = ids
    image = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
    views = {"image": image, "text": text}
    return Batch(views, [str(row) for row in range(rows)], list(range(rows)), {})


def build(*, weight: float = 1.0, contrast: bool = True, **parts: Any) -> BagOfTokens:
    torch.manual_seed(0)
    config = bag_of_tokens.Config(weight=weight, contrast=contrast)
    special = frozenset({0, START, END})
    made = Parts(
        model(CFG), CFG["embed_dim"], InfoNCE(), normalize, vocab_size=40, special_ids=special,
        **parts,
    )  # fmt: skip
    objective = config.build(made)
    objective.lock_unused()
    return objective


def loss_of(objective: Objective, rows: Batch) -> Any:
    return objective.loss(objective.embed(objective.prepare(rows)), LocalPool())


def by_hand(objective: BagOfTokens, rows: Batch, seen: list[list[int]]) -> Tensor:
    """Mean cross-entropy in float64. seen: all captions that were counted"""
    embedding = objective.encoder.visual(normalize(rows.views["image"])).double()
    weight = objective.head.linear.weight.double()
    bias = objective.head.linear.bias.double()
    losses = []
    for row, tokens in enumerate(rows.views["text"].tolist()):
        words = sorted(set(tokens) - {0, START, END})
        rarity = []
        for word in words:
            captions_with = sum(word in caption for caption in seen)
            rarity.append(math.log((len(seen) + 1) / (captions_with + 0.5)))
        logits = weight @ embedding[row] + bias
        log_probability = logits - logits.exp().sum().log()
        loss = torch.zeros((), dtype=torch.float64)
        for word, value in zip(words, rarity, strict=True):
            loss = loss - value / sum(rarity) * log_probability[word]
        losses.append(loss)
    return torch.stack(losses).mean()


def test_the_loss_is_cross_entropy_with_rare_tokens_weighted() -> None:
    """Value and gradients, in the first batch and in the second, whose counts include both."""
    objective = build(contrast=False)
    second = [[10, 6], [11, 5], [12], [6, 13]]
    seen: list[list[int]] = []
    for captions in (CAPTIONS, second):
        rows = batch(captions, seed=len(seen))
        seen += captions
        out = loss_of(objective, rows)
        expected = by_hand(objective, rows, seen)
        torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=1e-7)
        leaves = [objective.head.linear.weight, *objective.encoder.visual.parameters()]
        actual = torch.autograd.grad(out.loss, leaves)
        for gradient, reference in zip(actual, torch.autograd.grad(expected, leaves), strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-6)
    assert out.metrics.keys() == {"token_loss", "token_accuracy"}


def test_superclip_adds_it_to_the_loss_of_pairs() -> None:
    objective = build(weight=0.25)
    rows = batch()
    out = loss_of(objective, rows)
    pairs = loss_of(ImageText(objective.encoder, InfoNCE(), normalize=normalize), rows)
    tokens = by_hand(objective, rows, CAPTIONS)
    torch.testing.assert_close(out.loss.double(), pairs.loss.double() + 0.25 * tokens)
    assert out.metrics["pair_loss"].item() == pytest.approx(pairs.loss.item())
    assert out.metrics["token_loss"].item() == pytest.approx(tokens.item())


def test_superclass_trains_the_image_tower_and_the_head_alone() -> None:
    objective = build(contrast=False)
    loss_of(objective, batch()).loss.backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert trained == with_gradient
    assert all(name.startswith(("encoder.visual.", "head.linear.")) for name in trained)


def test_a_head_that_is_never_sharded_is_a_group_of_its_own() -> None:
    """The optimizer's kernel takes sharded or whole parameters, not both; and a checkpoint must fit
    runs with and without shards."""
    objective = build()
    own = objective.own_parameters()
    whole = objective.whole_parameters()
    assert [name for name, _ in own] == ["head.linear.weight", "head.linear.bias"]
    assert [id(p) for p in whole] == [id(p) for _, p in own]
    optimizer = build_optimizer(objective.encoder, OptimConfig(), own, whole)
    for group in optimizer.param_groups:
        are_whole = [p.ndim == 0 or any(p is q for q in whole) for p in group["params"]]
        assert len(set(are_whole)) == 1


def test_rows_in_parts_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loss_of(build(), batch())
    monkeypatch.setattr(bag_of_tokens, "ROWS_AT_ONCE", 3)
    parts = loss_of(build(), batch())
    torch.testing.assert_close(parts.loss, whole.loss)
    assert torch.equal(parts.metrics["token_accuracy"], whole.metrics["token_accuracy"])


def test_memory_does_not_grow_with_the_batch() -> None:
    """At most 22 bytes for each of 256 x V logits, and little for further rows."""
    vocab_size = 4000
    head = TokenHead(8, vocab_size, frozenset({0}))
    peaks = []
    for rows in (256, 1024):
        embedding = torch.randn(rows, 8, requires_grad=True)
        tokens = torch.randint(1, vocab_size, (rows, 5))
        with LiveBytes() as live:
            head(embedding, tokens)[0].mean().backward()
        peaks.append(live.peak)
    assert peaks[0] < 24 * 256 * vocab_size
    assert peaks[1] < 1.1 * peaks[0]


def test_an_evaluation_counts_nothing() -> None:
    objective = build()
    with torch.no_grad():
        loss_of(objective, batch())
    assert objective.head.num_captions == 0
    loss_of(objective, batch())
    assert objective.head.num_captions == len(CAPTIONS)
    assert objective.head.captions_with[6] == 4
    assert objective.head.captions_with[5] == 2


def test_a_caption_without_words_has_no_loss() -> None:
    out = loss_of(build(contrast=False), batch([[], [0]]))
    assert out.loss.item() == 0
    out.loss.backward()  # and a finite gradient


def test_the_head_and_its_counts_are_saved_and_taken_up() -> None:
    objective = build()
    loss_of(objective, batch())
    state = objective.own_state()
    other = build()
    other.load_state_dict(state, strict=False)
    assert other.head.num_captions == len(CAPTIONS)
    assert torch.equal(other.head.captions_with, objective.head.captions_with)
    rows = batch(seed=3)
    assert torch.equal(loss_of(other, rows).loss, loss_of(objective, rows).loss)


def test_start_end_and_padding_are_no_words() -> None:
    """Of CLIP's tokenizer."""
    tokenizer = ClipBPE()
    ids = [*tokenizer.encode("a red bar", 16), tokenizer.pad_id]
    words = [i for i in ids if i not in tokenizer.special_ids]
    assert words == ids[1:4]


def test_a_queue_without_pairs_is_refused() -> None:
    with pytest.raises(UserError, match=r"pool\.queue 8: objective\.contrast is false"):
        build(contrast=False, queue=8)
