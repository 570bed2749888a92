"""Cached features equal the output of the trunks for the samples that `Batches` would load."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import TOKENIZER, TOKENS, batch, batches
from samples import pair, write_shard
from torch import Tensor

from clipx.data import feature_build, feature_cache
from clipx.data.config import DataConfig
from clipx.data.corpus import Used
from clipx.data.feature_build import build_images, build_texts
from clipx.data.feature_cache import FeatureBatches, FeatureCache, Trunks, augmentation_faults
from clipx.data.loader import Loaded
from clipx.data.preprocessing import center
from clipx.training.cached_features import silent
from clipx.types import UserError

PLAIN: dict[str, Any] = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "workers": 0}


def image_trunk(pixels: Tensor) -> Tensor:
    """Different for different pictures."""
    return pixels.float().mean(-1).flatten(1) / 255


def text_trunk(ids: Tensor) -> Tensor:
    """Different for different captions, whatever their padding."""
    return torch.stack([(ids % 97 + 1).float().log().mul(ids != 0).sum(1), (ids != 0).sum(1)], 1)


FIT = partial(center, size=12)


def trunks(digest: str = "a") -> Trunks:
    return Trunks(image_trunk, text_trunk, FIT, 12, TOKENIZER, TOKENS, None, digest)


def cache(folder: Path, root: Path, *, ranks: int = 1, digest: str = "a") -> FeatureCache:
    config = DataConfig(shards=str(folder), streams=4, window=3, **PLAIN)
    made = FeatureCache(root, config.open(seed=0), trunks(digest), config)
    for build in (build_images, build_texts):
        for rank in range(ranks):
            build(made, silent, rank=rank, world_size=ranks)
    made.finish()
    return made


def feature_batches(made: FeatureCache, rank: int = 0, world_size: int = 1) -> FeatureBatches:
    return FeatureBatches(made, global_batch_size=8, rank=rank, world_size=world_size)


def one(source: FeatureBatches, k: int) -> Loaded:
    loaded = source[k]
    assert isinstance(loaded, Loaded), loaded
    return loaded


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Three shards. The second has a sample without a caption, and one that is not an image."""
    samples = {f"k{n:02d}": pair(n) for n in range(13)}
    samples["k06"] = {"png": samples["k06"]["png"]}
    samples["k07"] = {"jpg": b"\xff\xd8\xff no picture", "txt": "a picture"}
    keys = list(samples)
    for number, part in enumerate((keys[:5], keys[5:9], keys[9:])):
        write_shard(tmp_path / f"corpus/{number}.tar", {key: samples[key] for key in part})
    return tmp_path / "corpus"


def test_features_equal_those_of_the_loaded_batches(spoiled: Path, tmp_path: Path) -> None:
    """Order, captions, replacements of bad samples, fingerprints: through three epochs."""
    pixels = batches(spoiled, **PLAIN)
    features = feature_batches(cache(spoiled, tmp_path / "features"))
    assert any(batch(pixels, k).bad for k in range(5))
    for k in range(5):
        loaded, expected = one(features, k), batch(pixels, k)
        plain = ("keys", "positions", "state", "samples", "fingerprint", "bad")
        assert all(getattr(loaded, name) == getattr(expected, name) for name in plain)
        half = {"atol": 1e-6, "rtol": 2**-11}  # the precision of float16
        torch.testing.assert_close(
            loaded.views["image"], image_trunk(expected.views["image"]), **half
        )
        torch.testing.assert_close(loaded.views["text"], text_trunk(expected.views["text"]), **half)


def test_ranks_share_the_work_and_the_batch(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (feature_build, feature_cache):
        monkeypatch.setattr(module, "TEXTS_PER_FILE", 4)
    whole = one(feature_batches(cache(corpus, tmp_path / "one")), 2)
    shared = cache(corpus, tmp_path / "three", ranks=2)
    for rank in range(2):
        part = one(feature_batches(shared, rank, 2), 2)
        torch.testing.assert_close(part.views["image"], whole.views["image"][rank::2])
        torch.testing.assert_close(part.views["text"], whole.views["text"][rank::2])
        assert part.keys == whole.keys[rank::2]


def test_a_shard_without_samples_has_no_features(corpus: Path, tmp_path: Path) -> None:
    write_shard(corpus / "00001b.tar", {})
    features = feature_batches(cache(corpus, tmp_path))
    expected = batches(corpus, **PLAIN)
    for k in range(3):
        loaded = one(features, k)
        assert loaded.keys == batch(expected, k).keys
        pixels = image_trunk(batch(expected, k).views["image"])
        torch.testing.assert_close(loaded.views["image"], pixels, atol=1e-6, rtol=2**-11)


def test_other_contents_of_the_same_sizes_have_other_features(tmp_path: Path) -> None:
    samples = {"a": {**pair(1), "txt": "red"}, "b": {**pair(2), "txt": "tan"}}
    write_shard(tmp_path / "corpus/0.tar", samples)
    first = cache(tmp_path / "corpus", tmp_path / "features")
    samples["b"]["txt"] = "sky"
    write_shard(tmp_path / "corpus/0.tar", samples)
    second = cache(tmp_path / "corpus", tmp_path / "features")
    assert first.folder != second.folder
    assert second.texts().distinct == ["red", "sky"]


def test_pictures_that_are_turned_have_other_features(corpus: Path, tmp_path: Path) -> None:
    """Those as stored keep the name that they had before there was a choice."""
    names = {}
    for turns in (False, True):
        config = DataConfig(shards=str(corpus), **PLAIN, exif_orientation=turns)
        opened = config.open(seed=0)
        made = FeatureCache(tmp_path, opened, trunks(), config)
        before = [opened.digest, "a", config.caption_field, config.max_image_pixels]
        names[turns] = made.digest == hashlib.sha1(repr(before).encode()).hexdigest()
    assert names == {False: True, True: False}


def test_equal_captions_are_encoded_once(tmp_path: Path) -> None:
    samples = {f"k{n}": {**pair(2 * n), "txt": "the same"} for n in range(1, 3)}
    samples["k3"] = {**pair(3), "json": {"captions": ["the same", "another"]}}
    write_shard(tmp_path / "corpus/0.tar", samples)
    texts = cache(tmp_path / "corpus", tmp_path / "features").texts()
    assert texts.distinct == ["the same", "another"]
    assert texts.ids.tolist() == [0, 0, 0, 1]


def test_a_stopped_build_continues_with_the_missing_files(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cache(corpus, tmp_path)
    before = one(feature_batches(made), 0)
    for name in ("meta.json", "captions-00001.json", "images-00001.npy", "texts-00000.npy"):
        (made.folder / name).unlink()
    assert not made.complete
    times = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    again = cache(corpus, tmp_path)
    assert again.complete
    assert all((again.folder / name).stat().st_mtime_ns == t for name, t in times.items())
    feature_cache._open_array.cache_clear()
    torch.testing.assert_close(one(feature_batches(again), 0).views["image"], before.views["image"])


def stop_after(count: int) -> Any:
    """The progress of a build that a signal ends after so many samples or texts."""

    @contextmanager
    def progress(title: str, total: int) -> Iterator[Any]:
        left = count

        def advance(done: int) -> None:
            nonlocal left
            left -= done
            if left < 0:
                raise KeyboardInterrupt

        yield advance

    return progress


def test_a_build_stopped_inside_a_shard_continues_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and texts of a finished part are computed once."""
    write_shard(tmp_path / "corpus/0.tar", {f"k{n:02d}": pair(n) for n in range(40)})
    whole = one(feature_batches(cache(tmp_path / "corpus", tmp_path / "whole")), 1)
    for name in ("SAMPLES_PER_PART", "TEXTS_PER_PART"):
        monkeypatch.setattr(feature_build, name, 8)
    for name in ("IMAGES_AT_ONCE", "TEXTS_AT_ONCE"):
        monkeypatch.setattr(feature_build, name, 2)
    config = DataConfig(shards=str(tmp_path / "corpus"), streams=4, window=3, **PLAIN)
    counts = {"image": 0, "text": 0}

    def counted(kind: str, trunk: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            counts[kind] += len(x)
            return trunk(x)

        return run

    trunk_functions = [counted("image", image_trunk), counted("text", text_trunk)]
    kept = Trunks(*trunk_functions, FIT, 12, TOKENIZER, TOKENS, None, "a")
    made = FeatureCache(tmp_path / "stopped", config.open(seed=0), kept, config)
    for build, kind in ((build_images, "image"), (build_texts, "text")):
        for _ in range(2):  # each stop comes after two more parts, in the middle of the next
            before = counts[kind]
            with pytest.raises(KeyboardInterrupt):
                build(made, stop_after(20 + before // 20 * 16), rank=0, world_size=1)
        build(made, silent, rank=0, world_size=1)
        total = 40 if kind == "image" else len(made.texts().distinct)
        assert counts[kind] <= total + 2 * 8, "only the parts under way are done again"
    made.finish()
    assert not list(made.folder.glob("*part*"))
    again = one(feature_batches(made), 1)
    assert torch.equal(again.views["image"], whole.views["image"])
    assert torch.equal(again.views["text"], whole.views["text"])


def test_other_trunks_or_another_corpus_get_features_of_their_own(
    corpus: Path, tmp_path: Path
) -> None:
    folders = {cache(corpus, tmp_path / "f").folder, cache(corpus, tmp_path / "f").folder}
    assert len(folders) == 1
    folders.add(cache(corpus, tmp_path / "f", digest="b").folder)
    shutil.copy(corpus / "00000.tar", corpus / "00009.tar")
    folders.add(cache(corpus, tmp_path / "f").folder)
    assert len(folders) == 3


def test_a_sample_that_has_become_good_is_refused(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = feature_batches(cache(spoiled, tmp_path / "features"))
    good_now = lambda position, shard, sample, use: Used(None, "k", shard, sample)  # noqa: E731
    monkeypatch.setattr(features.corpus, "usable", good_now)
    with pytest.raises(UserError, match=r"sample k of .* delete that folder"):
        [features[k] for k in range(3)]


def test_features_beyond_float16_are_refused(corpus: Path, tmp_path: Path) -> None:
    config = DataConfig(shards=str(corpus), **PLAIN)
    large = Trunks(
        lambda x: image_trunk(x) * 1e6,
        text_trunk,
        partial(center, size=12),
        12,
        TOKENIZER,
        TOKENS,
        None,
        "a",
    )
    made = FeatureCache(tmp_path, config.open(seed=0), large, config)
    with pytest.raises(UserError, match="exceed float16"):
        build_images(made, silent, rank=0, world_size=1)


@pytest.mark.parametrize(
    "change", [{"flip": 0.5}, {"crop_scale": (0.9, 1)}, {"crop_ratio": (1, 2)}]
)
def test_random_views_cannot_be_cached(change: dict[str, Any]) -> None:
    assert augmentation_faults(DataConfig(shards="s", **PLAIN)) == []
    assert augmentation_faults(DataConfig(shards="s", **(PLAIN | change)))
