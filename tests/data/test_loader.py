"""Batches are a function of (seed, number, rank) alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import TOKENIZER, TOKENS, batch, batches, is_row_of, same
from samples import pair, png, write_shard

from clipx.data.augment import NUM_DRAWS, Augmentation
from clipx.data.loader import load
from clipx.data.tokenizers import pad
from clipx.types import UserError

WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on 1 core


def test_a_batch_is_what_its_docstring_says(corpus: Path) -> None:
    loaded = batch(batches(corpus), 3)
    assert loaded.views["image"].shape == (8, 3, 12, 12)
    assert loaded.views["image"].dtype == torch.uint8
    assert loaded.views["text"].dtype == torch.int64
    assert loaded.positions == list(range(24, 32))
    assert loaded.state == {"position": 32}
    assert len(loaded.keys) == 8
    assert loaded.bad == []


@WORKERS
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("first", [0, 4])
def test_batches_depend_on_neither_workers_nor_where_one_starts(
    corpus: Path, workers: int, first: int
) -> None:
    expected = [batch(batches(corpus, flip=0.5), k) for k in range(7)]
    loaded = list(load(batches(corpus, flip=0.5, workers=workers), first, 7))
    assert len(loaded) == 7 - first
    assert all(same(a, b) for a, b in zip(loaded, expected[first:], strict=True))


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_ranks_together_hold_the_batch_of_one_process(corpus: Path, world_size: int) -> None:
    """Batches of 24 from 13 samples: each spans epochs."""
    settings: dict[str, Any] = {"global_batch_size": 24, "pad_to": TOKENS, "flip": 0.5}
    for k in (0, 5):
        whole = batch(batches(corpus, **settings), k)
        parts = [
            batch(batches(corpus, rank=rank, world_size=world_size, **settings), k)
            for rank in range(world_size)
        ]
        for i in range(24):
            assert is_row_of(parts[i % world_size], i // world_size, whole, i)
        assert all(part.state == whole.state for part in parts)
        assert sum(part.fingerprint for part in parts) % 2**63 == whole.fingerprint


def test_an_epoch_holds_every_sample_once_and_the_next_follows(corpus: Path) -> None:
    keys = [key for loaded in load(batches(corpus), 0, 13) for key in loaded.keys]
    assert Counter(keys) == {f"k{n:02d}": 8 for n in range(13)}
    assert set(keys[:13]) == set(keys[13:26]) == set(Counter(keys))
    assert keys[:13] != keys[13:26]


def test_a_sample_has_one_number_among_all_of_the_corpus(tmp_path: Path) -> None:
    """That of what is used: b in place of the second shard's first, which is no picture."""
    write_shard(tmp_path / "0.tar", {"a": pair(0)})
    write_shard(tmp_path / "1.tar", {"x": {"jpg": b"no picture", "txt": "x"}, "b": pair(1)})
    source = batches(tmp_path, global_batch_size=30)
    loaded = batch(source, 0)
    assert len(loaded.bad) > 0
    numbers = dict(zip(loaded.keys, loaded.samples, strict=True))
    assert numbers == {"a": 0, "b": 2}
    assert [numbers[key] for key in loaded.keys] == loaded.samples


def test_another_seed_is_another_order_and_other_crops(corpus: Path) -> None:
    a, b = (batch(batches(corpus, seed=seed, global_batch_size=13), 0) for seed in (0, 1))
    assert a.keys != b.keys
    assert sorted(a.keys) == sorted(b.keys)
    row = {key: i for i, key in enumerate(b.keys)}
    assert any(
        not torch.equal(a.views["image"][i], b.views["image"][row[key]])
        for i, key in enumerate(a.keys)
    )
    assert a.fingerprint != b.fingerprint


def test_text_is_padded_to_the_longest_only(tmp_path: Path) -> None:
    captions = ["cat", "a cat on a mat", "word " * 100]
    for n, caption in enumerate(captions):
        write_shard(tmp_path / f"{n}/0.tar", {"a": {"png": png(0), "txt": caption}})
    widths = [batch(batches(tmp_path / str(n)), 0).views["text"].shape[1] for n in range(3)]
    assert widths == [3, 7, TOKENS]
    assert batch(batches(tmp_path / "0", pad_to=TOKENS), 0).views["text"].shape[1] == TOKENS


def test_every_caption_of_a_sample_is_drawn_as_often(tmp_path: Path) -> None:
    captions = ["one", "two", "three", "four"]
    given = ["", *captions[:2], "  ", None, *captions[2:]]
    write_shard(tmp_path / "0.tar", {"a": {"png": png(0), "json": {"alt": given}, "txt": "never"}})
    loaded = batch(batches(tmp_path, global_batch_size=400, caption_field="alt"), 0)
    drawn = Counter(tuple(row.tolist()) for row in loaded.views["text"])
    assert set(drawn) == {tuple(TOKENIZER.encode(caption, TOKENS)) for caption in captions}
    # 100 each, with a standard deviation of sqrt(400 * 1/4 * 3/4) = 8.7
    assert max(abs(count - 100) for count in drawn.values()) < 4 * 8.7


def test_one_caption_may_be_a_string_and_else_the_txt_is_read(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "0.tar",
        {
            "a": {"png": png(0), "json": {"captions": " from json\n"}, "txt": "from text"},
            "b": {"png": png(0), "json": {"other": 3}, "txt": " from text\n"},
        },
    )
    loaded = batch(batches(tmp_path, global_batch_size=2, pad_to=TOKENS), 0)
    expected = {"a": "from json", "b": "from text"}
    assert torch.equal(
        loaded.views["text"],
        pad([TOKENIZER.encode(expected[k], TOKENS) for k in loaded.keys], 0, TOKENS),
    )


STRONG = Augmentation(scale=(0.3, 0.6), flip=0.5, gray_scale_prob=0.5)


def test_each_view_has_an_augmentation_and_draws_of_its_own(corpus: Path) -> None:
    """The first view and the captions are those of a run with one view."""
    one = batches(corpus)
    several = batches(corpus, augmentations=[one.config.augmentation, STRONG, STRONG])
    for k in (0, 3):
        loaded = batch(several, k)
        assert loaded.views.keys() == {"image", "image_2", "image_3", "text"}
        alone = batch(one, k)
        assert same(loaded, alone)
        second, third = loaded.views["image_2"], loaded.views["image_3"]
        assert second.shape == alone.views["image"].shape
        assert not torch.equal(second, third)  # one augmentation, other draws
    draws = several.draws(np.array([5]))[0]
    assert len(draws) == 1 + 3 * NUM_DRAWS
    assert len(set(draws.tolist())) == len(draws)


@WORKERS
def test_views_depend_on_neither_workers_nor_ranks(corpus: Path) -> None:
    settings: dict[str, Any] = {"augmentations": [STRONG, STRONG], "pad_to": TOKENS}
    whole = batch(batches(corpus, **settings), 2)
    (loaded,) = load(batches(corpus, workers=1, **settings), 2, 3)
    for name in ("image", "image_2"):
        assert torch.equal(loaded.views[name], whole.views[name])
        parts = [batch(batches(corpus, rank=r, world_size=2, **settings), 2) for r in (0, 1)]
        rows = torch.stack([part.views[name] for part in parts], 1).flatten(0, 1)
        assert torch.equal(rows, whole.views[name])


def test_pictures_without_captions_are_enough_for_views_alone(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {f"{n}": {"png": png(n)} for n in range(8)})
    with pytest.raises(UserError, match="no text in captions or txt"):
        batch(batches(tmp_path), 0)
    loaded = batch(batches(tmp_path, needs_captions=False), 0)
    assert loaded.views.keys() == {"image"}
    assert loaded.bad == []
    assert sorted(loaded.keys) == [f"{n}" for n in range(8)]
