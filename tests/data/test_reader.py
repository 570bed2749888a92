"""Samples that come from memory and the decoded cache are those of the shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import batch, batches, same
from samples import encoded, pair, picture, write_shard

from clipx.data import decode
from clipx.data.corpus import Corpus
from clipx.data.sample import Raw
from clipx.types import UserError


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(shard, sample) of all that was read from shards, in order."""
    places: list[tuple[int, int]] = []
    original = Corpus.read_raw

    def recording(corpus: Corpus, shard: int, sample: int) -> Raw:
        places.append((shard, sample))
        return original(corpus, shard, sample)

    monkeypatch.setattr(Corpus, "read_raw", recording)
    return places


def samples(bad: tuple[int, ...] = ()) -> dict[str, dict[str, Any]]:
    members = {f"{n:03d}": pair(n) for n in range(16)}
    for n in bad:
        members[f"{n:03d}"] = {"png": b"<html>", "txt": "no picture"}
    return members


def test_a_sample_is_read_from_its_shard_once(tmp_path: Path, read: list[Any]) -> None:
    """16 samples in batches of 8: two batches are an epoch."""
    write_shard(tmp_path / "a.tar", samples())
    cached = batches(tmp_path, decoded_cache=str(tmp_path / "cache"))
    plain = batches(tmp_path)
    for k in range(6):
        read.clear()
        loaded = batch(cached, k)
        assert len(read) == (8 if k < 2 else 0)
        assert same(loaded, batch(plain, k))


def test_bad_samples_are_found_and_replaced_in_each_epoch(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", samples(bad=(3, 8)))
    cached = batches(tmp_path, decoded_cache=str(tmp_path / "cache"))
    plain = batches(tmp_path)
    for k in range(6):
        loaded = batch(cached, k)
        assert same(loaded, batch(plain, k))
        if k % 2 == 1:
            assert len(loaded.bad) + len(batch(cached, k - 1).bad) >= 2


def test_a_cache_that_is_removed_while_a_run_uses_it_costs_time_only(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", samples())
    cached = batches(tmp_path, decoded_cache=str(tmp_path / "cache"))
    plain = batches(tmp_path)
    for k in range(6):
        if k == 3:
            for file in (tmp_path / "cache").rglob("pixels-*"):
                file.write_bytes(b"")
        if k == 5:
            shutil.rmtree(tmp_path / "cache")
        assert same(batch(cached, k), batch(plain, k))


def large_photos(folder: Path) -> Path:
    photos = {}
    for n in range(8):
        image = encoded(picture(n, (100, 80)), "JPEG", quality=95)
        photos[f"{n}"] = {"jpg": image, "txt": f"photo {n}"}
    write_shard(folder / "a.tar", photos)
    return folder


def test_scaled_pictures_differ_little_and_exact_ones_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = large_photos(tmp_path)
    exact = batch(batches(folder), 0)
    sizes = []
    original = decode._planes

    def recording(array: Any) -> torch.Tensor:
        sizes.append(array.shape[:2])
        return original(array)

    monkeypatch.setattr(decode, "_planes", recording)
    scaled = batch(batches(folder, decode="scaled"), 0)
    # 12 pixels are wanted: 80 rows are enough for a quarter, crops of a tenth less too.
    assert sizes == [(20, 25)] * 8
    assert torch.equal(scaled.views["text"], exact.views["text"])
    assert (scaled.keys, scaled.fingerprint) == (exact.keys, exact.fingerprint)
    difference = scaled.views["image"].float() - exact.views["image"].float()
    assert 0 < difference.abs().mean() < 5  # other pictures: 70


def test_a_cache_of_scaled_pictures_is_refused(tmp_path: Path) -> None:
    """A picture may be scaled otherwise at its next visit."""
    folder = large_photos(tmp_path)
    with pytest.raises(UserError, match=r"data\.decode scaled .* leave one of the two out"):
        batches(folder, decode="scaled", decoded_cache=str(tmp_path / "cache"))
