"""Files that safetensors itself reads, and a hash that is theirs."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from clipx.checkpoints import tensor_files

TENSORS = {
    "weight": torch.randn(300, 7),
    "transposed": torch.randn(4, 5).t(),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "half": torch.randn(3).to(torch.bfloat16),
    "small": torch.randn(5).to(torch.float16),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "numbers": torch.tensor([2**62, -1]),
    "größe": torch.ones(1),
}


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = tensor_files.write(TENSORS, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_slice("weight")[10:20], TENSORS["weight"][10:20])


def test_every_tensor_lies_at_a_multiple_of_its_size(tmp_path: Path) -> None:
    """So that a reader may map the file instead of copying."""
    path = tmp_path / "a.safetensors"
    tensor_files.write(TENSORS, path)
    assert all(t.data_ptr() % t.element_size() == 0 for t in load_file(path).values())


def test_the_same_tensors_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    backwards = dict(reversed(TENSORS.items()))
    one, other = (tensor_files.write(t, tmp_path / "x") for t in (TENSORS, backwards))
    assert one == other


def test_more_than_a_piece_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "_PIECE", 100)
    path = tmp_path / "a.safetensors"
    digest = tensor_files.write(TENSORS, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(load_file(path)["weight"], TENSORS["weight"])


def test_a_limit_on_the_size_of_files_is_an_oserror(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            tensor_files.write({"a": torch.zeros(4096)}, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
