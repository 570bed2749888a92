"""Checkpoints that ranks write each its part of, while they train on, and that other numbers of
ranks take up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import checkpoint_checks
import numpy as np
import pytest
import torch
from ranks import RankGroup, run_ranks

from clipx.checkpoints import format as checkpoints
from clipx.distributed.runtime import start
from clipx.models.dual_encoder import DualEncoder

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two() -> Iterator[RankGroup]:
    group = RankGroup(2)
    yield group
    group.close()


@pytest.fixture(scope="module")
def saved(two: RankGroup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranks]:
    """By two ranks with FSDP2."""
    folder = tmp_path_factory.mktemp("sharded")
    return folder, two(partial(checkpoint_checks.save, parallel="fsdp2", fault=False), folder)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys() != set()
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_each_rank_writes_its_part_and_all_are_in_the_manifest(saved: tuple[Path, Ranks]) -> None:
    folder, ranks = saved
    (path,) = checkpoints.list_checkpoints(folder)
    assert [p.name for p in folder.iterdir()] == [path.name]
    parts = sorted(path.glob("optimizer/*"))
    assert [p.name for p in parts] == ["rank_00000.safetensors", "rank_00001.safetensors"]
    sizes = [p.stat().st_size for p in parts]
    assert max(sizes) < 1.2 * min(sizes), "halves"
    assert checkpoints.verify(path) is None
    content = parts[1].read_bytes()
    parts[1].write_bytes(content[:-1])
    assert "rank_00001" in (checkpoints.verify(path) or "")
    parts[1].write_bytes(content)
    assert [rank["fault"] for rank in ranks] == [None, None]
    assert ranks[0]["newest"] == 2


def test_training_goes_on_before_a_byte_is_written(saved: tuple[Path, Ranks]) -> None:
    """Files are written after two more steps, and the state is that of the step of the save."""
    assert not any(rank["held"] for rank in saved[1])


@pytest.mark.parametrize(
    ("size", "kind"), [(1, "ddp"), (2, "fsdp2"), (2, "ddp"), (3, "fsdp2")], ids=str
)
def test_any_number_of_ranks_takes_it_up(
    size: int, kind: str, saved: tuple[Path, Ranks], two: RankGroup
) -> None:
    folder, expected = saved[0], saved[1][0]["expected"]
    act = partial(checkpoint_checks.load, parallel=kind)
    if size == 1:
        found = [act(start("cpu"), folder)]
    elif size == 2:
        found = two(act, folder)
    else:
        found = run_ranks(partial(act, folder=folder), size)
    for rank in found:
        assert_same(rank["found"], expected)
    # Each rank goes on with its own random state; one that the run did not have keeps its seed.
    assert [rank["seed"] for rank in found] == [1000, 1001, 0][:size]
    numbers = [rank["numbers"] for rank in found]
    if kind == "fsdp2":  # no rank holds more than its part
        assert max(numbers) < 0.7 * sum(numbers)
    else:
        assert len(set(numbers)) == 1


def test_what_one_rank_saved_two_take_up_in_parts(two: RankGroup, tmp_path: Path) -> None:
    saved = checkpoint_checks.save(start("cpu"), tmp_path, "ddp", False)
    for rank in two(partial(checkpoint_checks.load, parallel="fsdp2"), tmp_path):
        assert_same(rank["found"], saved["expected"])


def test_a_model_is_loaded_without_ranks(saved: tuple[Path, Ranks]) -> None:
    model = checkpoints.load_model(checkpoints.list_checkpoints(saved[0])[0], averaged=False)[0]
    assert isinstance(model, DualEncoder)
    expected = saved[1][0]["expected"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.from_numpy(expected[f"weights.{name}"])), name


def test_a_full_disk_of_one_rank_is_reported_by_rank_0_and_leaves_nothing(
    two: RankGroup, tmp_path: Path
) -> None:
    ranks = two(partial(checkpoint_checks.save, parallel="fsdp2", fault=True), tmp_path)
    assert [rank["fault"] for rank in ranks] == [ranks[0]["fault"]] * 2
    assert "checkpoint of step 2 not written: OSError: rank 1: " in ranks[0]["fault"]
    assert "No space left" in ranks[0]["fault"]
    assert list(tmp_path.iterdir()) == []
