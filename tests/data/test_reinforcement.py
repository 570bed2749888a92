"""Stored embeddings of a teacher belong to the pixels and captions that training gets with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import TOKENIZER, TOKENS, batch, same
from safetensors.numpy import load_file
from samples import pair, png, write_shard
from torch import Tensor
from torch.nn import functional as F

from clipx.data.config import DataConfig
from clipx.data.loader import Batches
from clipx.data.preprocessing import center
from clipx.data.reinforcement import Reinforcement, read_manifest, shard_file
from clipx.data.reinforcement_build import Build, TeacherModel
from clipx.data.tokenizers import pad
from clipx.training.cached_features import silent
from clipx.types import TeacherInfo, UserError

SIZE = 12
VIEWS = 3
CROPS: dict[str, Any] = {"crop_scale": (0.2, 1), "flip": 0.5, "streams": 4, "window": 3}
INFO = TeacherInfo(embed_dim=2 * SIZE, scale=20.0, digest="ab", source="a teacher")


def of_images(pixels: Tensor) -> Tensor:
    """Different for different pixels."""
    values = pixels.float() / 255
    return F.normalize(torch.cat([values.mean((1, 2)), values.mean((1, 3))], dim=1), dim=1)


def of_tokens(tokens: Tensor) -> Tensor:
    """Different for different captions, whatever their padding."""
    out = torch.zeros(len(tokens), 2 * SIZE)
    for row, ids in enumerate(tokens.tolist()):
        for place, token in enumerate(ids):
            if token != TOKENIZER.pad_id:
                out[row, (token + place) % (2 * SIZE)] += 1 + token % 7
    return F.normalize(out, dim=1)


def of_texts(texts: Sequence[str]) -> Tensor:
    ids = [TOKENIZER.encode(text, TOKENS) for text in texts]
    return of_tokens(pad(ids, TOKENIZER.pad_id)) if ids else torch.zeros(0, 2 * SIZE)


TEACHER = TeacherModel(INFO, of_images, of_texts, center, SIZE)


def config_of(corpus: Path, **settings: Any) -> DataConfig:
    return DataConfig(**{"shards": str(corpus), "workers": 0, **CROPS, **settings})


def reinforce(
    config: DataConfig, out: Path, *, ranks: int = 1, teacher: TeacherModel = TEACHER
) -> Path:
    build = Build(out, config.open(seed=0), config, teacher, VIEWS)
    build.open_folder()
    for rank in range(ranks):
        build.build_shards(silent, rank=rank, world_size=ranks)
    build.finish()
    return out


def batches(config: DataConfig, out: Path | None, *, rank: int = 0, world_size: int = 1) -> Batches:
    corpus = config.open(seed=1)
    return Batches(
        config,
        corpus,
        TOKENIZER,
        image_size=SIZE,
        context_length=TOKENS,
        pad_to=TOKENS,
        global_batch_size=8,
        rank=rank,
        world_size=world_size,
        reinforcement=None if out is None else Reinforcement(out, corpus, config),
    )


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Three shards of samples with two captions in one field and one in another. The second has a
    sample without captions, and one that is not an image."""
    samples = {}
    for n in range(13):
        fields = {"short": [f"{n} a", f"{n} b"], "long": f"the picture number {n}"}
        samples[f"k{n:02d}"] = {"png": png(n), "json": json.dumps(fields)}
    samples["k06"] = {"png": samples["k06"]["png"]}
    samples["k07"] = {"jpg": b"\xff\xd8\xff no picture", "txt": "a picture"}
    keys = list(samples)
    for number, part in enumerate((keys[:5], keys[5:9], keys[9:])):
        write_shard(tmp_path / f"corpus/{number}.tar", {key: samples[key] for key in part})
    return tmp_path / "corpus"


FIELDS = {"caption_field": {"short": 2.0, "long": 1.0}}


def test_each_row_has_the_embeddings_of_its_own_pixels_and_caption(
    spoiled: Path, tmp_path: Path
) -> None:
    """Through five epochs, with captions of two fields and replaced samples."""
    config = config_of(spoiled, **FIELDS)
    source = batches(config, reinforce(config, tmp_path / "out"))
    plain = batches(config, None)
    half = {"atol": 1e-6, "rtol": 2**-10}  # the precision of float16
    for k in range(8):
        loaded = batch(source, k)
        rows = loaded.views
        torch.testing.assert_close(rows["teacher_image"].float(), of_images(rows["image"]), **half)
        torch.testing.assert_close(rows["teacher_text"].float(), of_tokens(rows["text"]), **half)
        assert rows["teacher_image"].dtype == torch.float16
        # The order, the captions and the replacements are those of a run without a teacher.
        expected = batch(plain, k)
        assert torch.equal(rows["text"], expected.views["text"])
        assert (loaded.keys, loaded.samples) == (expected.keys, expected.samples)
        assert loaded.fingerprint == expected.fingerprint


def test_every_view_of_a_sample_is_visited(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    source = batches(config, reinforce(config, tmp_path / "out"))
    seen: dict[str, set[bytes]] = {}
    for k in range(40):
        loaded = batch(source, k)
        for key, row in zip(loaded.keys, loaded.views["teacher_image"], strict=True):
            seen.setdefault(key, set()).add(row.numpy().tobytes())
    assert len(seen) == 11
    assert {len(views) for views in seen.values()} == {VIEWS}


def test_samples_that_could_not_be_embedded_are_listed(spoiled: Path, tmp_path: Path) -> None:
    out = reinforce(config_of(spoiled, **FIELDS), tmp_path / "out")
    manifest = read_manifest(out)
    assert manifest.complete
    assert manifest.bad == {"1": ["k06", "k07"]}
    assert manifest.teacher == INFO
    stored = load_file(shard_file(out, 1))
    assert not stored["image"][1:3].any()
    assert np.diff(stored["first"]).tolist() == [3, 0, 0, 3]


def test_a_sample_that_can_be_read_only_now_is_replaced(tmp_path: Path) -> None:
    """Its picture was too large for the limit of the build."""
    samples = {f"k{n}": {"png": png(n), "txt": f"picture {n}"} for n in range(6)}
    samples["k3"]["png"] = png(3, size=(40, 30))
    write_shard(tmp_path / "corpus/0.tar", samples)
    out = reinforce(config_of(tmp_path / "corpus", max_image_pixels=400), tmp_path / "out")
    source = batches(config_of(tmp_path / "corpus"), out)
    keys = [key for k in range(6) for key in batch(source, k).keys]
    assert set(keys) == {"k0", "k1", "k2", "k4", "k5"}


def test_ranks_share_the_work_and_the_batch(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    one = reinforce(config, tmp_path / "one")
    two = reinforce(config, tmp_path / "two", ranks=2)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    whole = batch(batches(config, one), 2)
    for rank in range(2):
        part = batch(batches(config, one, rank=rank, world_size=2), 2)
        for name, view in part.views.items():
            assert torch.equal(view, whole.views[name][rank::2]), name


def test_a_stopped_build_continues_with_the_missing_shards(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    whole = reinforce(config, tmp_path / "whole")
    out = tmp_path / "stopped"
    calls = 0

    def failing(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # in the second shard
            raise OSError("the disk is full")
        return of_images(pixels)

    with pytest.raises(OSError, match="the disk is full"):
        reinforce(config, out, teacher=replace(TEACHER, image=failing))
    assert [p.name for p in out.glob("shard-*")] == ["shard-00000.safetensors"]
    assert not list(out.glob(".*")), "no temporary file is left"
    with pytest.raises(UserError, match="lacks 2 of 3 shards; complete it by"):
        batches(config, out)
    first = shard_file(out, 0).stat()
    reinforce(config, out)
    assert shard_file(out, 0).stat().st_mtime_ns == first.st_mtime_ns, "not computed again"
    for path in whole.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_decoded_images_that_are_kept_give_the_same_batches(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    out = reinforce(config, tmp_path / "out")
    kept = batches(replace(config, decoded_cache=str(tmp_path / "decoded")), out)
    for _ in range(2):  # first from shards, then from memory
        for k in range(3):
            loaded = batch(kept, k)
            expected = batch(batches(config, out), k)
            assert same(loaded, expected)
            assert torch.equal(loaded.views["teacher_image"], expected.views["teacher_image"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 0.25}, "is of another augmentation"),
        (
            {"caption_field": "long"},
            r"another data\.caption_field \(\['short', 'long'\], not",
        ),
        ({"shards": "OTHER"}, "is of another corpus"),
        (
            {"exif_orientation": False},
            r"is of another data\.exif_orientation \(True, not False\)",
        ),
        ({"decode": "scaled"}, r"data\.decode scaled gives other pixels than the teacher has seen"),
    ],
)
def test_a_folder_of_anything_else_is_refused(
    spoiled: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    out = reinforce(config_of(spoiled, **FIELDS), tmp_path / "out")
    write_shard(tmp_path / "other/0.tar", {"a": {**pair(1), "txt": "red"}})
    if "shards" in settings:
        settings = {"shards": str(tmp_path / "other")}
    config = config_of(spoiled, **{**FIELDS, **settings})
    with pytest.raises(UserError, match=message):
        batches(config, out)


def test_a_build_does_not_mix_embeddings(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    out = reinforce(config, tmp_path / "out")
    other = replace(TEACHER, info=replace(INFO, digest="cd"))
    with pytest.raises(UserError, match=r"has embeddings of another teacher \(a teacher\)"):
        reinforce(config, out, teacher=other)
    with pytest.raises(UserError, match="has embeddings of another augmentation"):
        reinforce(config_of(spoiled, **FIELDS, gray_scale_prob=0.5), out)


def test_a_folder_of_before_orientation_had_a_setting_is_of_stored_pixels(
    spoiled: Path, tmp_path: Path
) -> None:
    config = config_of(spoiled, **FIELDS, exif_orientation=False)
    out = reinforce(config, tmp_path / "out")
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("exif_orientation") is False
    path.write_text(json.dumps(manifest))
    batches(config, out)
    with pytest.raises(UserError, match=r"another data\.exif_orientation \(False, not True\)"):
        batches(config_of(spoiled, **FIELDS), out)


def test_damage_is_named(spoiled: Path, tmp_path: Path) -> None:
    config = config_of(spoiled, **FIELDS)
    out = reinforce(config, tmp_path / "out")
    for path in out.glob("shard-*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"shard-0000.\.safetensors cannot be read: .*; delete it"):
        batch(batches(config, out), 0)
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        batches(config, out)
    with pytest.raises(UserError, match=r"has no manifest\.json; make the folder by"):
        batches(config, tmp_path / "nowhere")
