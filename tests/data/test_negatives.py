"""Batches with the captions of mined negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import TOKENIZER, TOKENS, batch, batches
from safetensors.numpy import save_file
from samples import png, write_shard

from clipx.data.corpus import Corpus
from clipx.data.loader import Batches, load
from clipx.data.negatives import NegativeTexts, num_drawn, read_negatives, write_negatives
from clipx.types import UserError

SIZE = 12
STORED = 4


def captions(n: int) -> list[str]:
    return [f"picture {n}", f"other words of {n}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of six samples with two captions each; the picture of the last is damaged."""
    for shard in (0, 1):
        samples: dict[str, dict[str, Any]] = {}
        for n in range(6 * shard, 6 * shard + 6):
            samples[f"k{n:02d}"] = {"png": png(n), "json": {"captions": captions(n)}}
        write_shard(tmp_path / f"data/{shard}.tar", samples)
    return tmp_path / "data"


def numbers() -> np.ndarray:
    """Sample n has the n % 5 samples after it, and -1."""
    out = np.full((SIZE, STORED), -1, dtype=np.int64)
    for n in range(SIZE):
        for place in range(min(n % 5, STORED)):
            out[n, place] = (n + 1 + place) % SIZE
    return out


def opened(folder: Path, *, count: int = 2, **settings: Any) -> Batches:
    source = batches(folder, pad_to=TOKENS, **settings)
    source.negatives = NegativeTexts(source.corpus, numbers(), count)
    return source


TEXTS = {tuple(TOKENIZER.encode(text, TOKENS)): text for n in range(SIZE) for text in captions(n)}


def text_of(ids: torch.Tensor) -> str:
    """The caption with these ids. Padding is 0."""
    return TEXTS[tuple(ids[ids != 0].tolist())]


def test_negatives_are_captions_of_the_stored_samples(folder: Path) -> None:
    """Each of them, and each caption, comes in some epoch; fewer are filled up."""
    source = opened(folder)
    seen: set[tuple[int, str]] = set()
    for k in range(60):
        rows = batch(source, k)
        texts = rows.views["negative_text"]
        assert texts.shape == (8, 2, TOKENS)
        for row, sample in enumerate(rows.samples):
            count = int(rows.views["num_negatives"][row])
            assert count == min(2, sample % 5)
            own = {(sample + 1 + place) % SIZE for place in range(sample % 5)}
            used = set()
            for place in range(count):
                text = text_of(texts[row, place])
                number = int(text.split()[-1])
                assert number in own
                used.add(number)
                seen.add((sample, text))
            assert len(used) == count, "no negative comes twice"
            for place in range(count, 2):
                assert torch.equal(texts[row, place], rows.views["text"][row])
    expected = set()
    for sample in range(SIZE):
        for place in range(sample % 5):
            for text in captions((sample + 1 + place) % SIZE):
                expected.add((sample, text))
    assert seen == expected


def test_they_depend_on_seed_and_position_alone(folder: Path, tmp_path: Path) -> None:
    """Not on ranks, workers, the reader's memory or what was read before."""
    whole = batch(opened(folder), 5)
    for rank in (0, 1):
        part = batch(opened(folder, rank=rank, world_size=2), 5)
        for name in ("negative_text", "num_negatives", "text", "image"):
            assert torch.equal(part.views[name], whole.views[name][rank::2])
    (again,) = load(opened(folder, workers=1), 5, 6)
    assert torch.equal(again.views["negative_text"], whole.views["negative_text"])
    cached = opened(folder, decoded_cache=str(tmp_path / "cache"))
    for k in range(5):
        batch(cached, k)
    assert torch.equal(batch(cached, 5).views["negative_text"], whole.views["negative_text"])
    other = batch(opened(folder, seed=1), 5)
    assert not torch.equal(other.views["negative_text"], whole.views["negative_text"])


def test_order_and_pictures_are_those_without_negatives(folder: Path) -> None:
    plain, with_them = batches(folder, pad_to=TOKENS), opened(folder)
    for k in range(3):
        one, other = batch(plain, k), batch(with_them, k)
        assert (one.keys, one.fingerprint) == (other.keys, other.fingerprint)
        for name in ("image", "text"):
            assert torch.equal(one.views[name], other.views[name])


def test_a_negative_that_cannot_be_read_is_left_out(folder: Path) -> None:
    """Sample 7 has lost its captions since; the next stored one takes its place."""
    samples: dict[str, dict[str, Any]] = {}
    for n in range(6, 12):
        samples[f"k{n:02d}"] = {"png": png(n), "json": {"captions": captions(n)}}
    samples["k07"]["json"] = {"captions": []}
    write_shard(folder / "1.tar", samples)
    source = opened(folder, count=STORED)
    for k in range(6):
        rows = batch(source, k)
        for row, sample in enumerate(rows.samples):
            lost = 7 in numbers()[sample].tolist()
            assert int(rows.views["num_negatives"][row]) == sample % 5 - lost


def corpus_of(folder: Path) -> Corpus:
    return batches(folder).corpus


def test_a_file_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    corpus = corpus_of(folder)
    path = tmp_path / "negatives"
    write_negatives(path, numbers(), corpus_digest=corpus.digest, about={"model": "m"})
    found = read_negatives(path, corpus)
    assert found.tolist() == numbers().tolist()
    assert num_drawn(found, None) == STORED
    assert num_drawn(found, 3) == 3
    with pytest.raises(UserError, match=r"num_negatives 5: the file of data\.negatives has 4"):
        num_drawn(found, 5)


def test_a_file_of_another_corpus_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "negatives"
    write_negatives(path, numbers(), corpus_digest=corpus_of(folder).digest, about={})
    write_shard(folder / "2.tar", {"new": {"png": png(50), "txt": "new"}})
    with pytest.raises(UserError, match=r"mined in another corpus.*clipx mine MODEL CORPUS"):
        read_negatives(path, corpus_of(folder))


def test_files_that_are_no_negatives_are_refused(folder: Path, tmp_path: Path) -> None:
    corpus = corpus_of(folder)
    path = tmp_path / "negatives"
    with pytest.raises(UserError, match="cannot be read"):
        read_negatives(path, corpus)
    path.write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        read_negatives(path, corpus)
    save_file({"negatives": numbers()}, path)
    with pytest.raises(UserError, match="is no file of negatives"):
        read_negatives(path, corpus)
    for wrong in (numbers()[:-1], numbers() + SIZE, numbers()[:, 0]):
        write_negatives(path, np.ascontiguousarray(wrong), corpus_digest=corpus.digest, about={})
        with pytest.raises(UserError, match="does not fit 12 samples"):
            read_negatives(path, corpus)
