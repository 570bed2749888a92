"""The optimizer's tensors, the largest part of a checkpoint: one file per rank that holds some.

    optimizer/rank_00000.safetensors     tensors by `number of the parameter`.`key`

The layout is that of torch.distributed.checkpoint's HuggingFaceStorageWriter: the header has the
offset of each part in its whole tensor, so torch's own reader reshards them onto any number of
ranks. Unlike in its default layout, nothing is pickled. Ranks write in threads, which must not use
collectives. So each writes `rank_00001.json` beside its file, with the size and hash or an error,
and rank 0 waits for these.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from clipx.checkpoints import tensor_files
from clipx.files import write_whole

FOLDER = "optimizer"
PEER_SECONDS = 600.0
"""Time that rank 0 waits for the file of another rank."""


@dataclass(frozen=True)
class Part:
    """A part of a tensor. offset: of its first element in the whole tensor, by dimension"""

    tensor: Tensor
    offset: tuple[int, ...]


Tensors = Mapping[str, Part]
Target = Callable[[int, torch.Size, torch.dtype], Tensor]
"""(number of the parameter, shape of the whole tensor, dtype) -> a tensor to fill"""


def file_of(rank: int) -> str:
    return f"{FOLDER}/rank_{rank:05d}.safetensors"


def write(tensors: Tensors, checkpoint: Path, rank: int) -> dict[str, Any]:
    """Write a rank's file. Returns its entry of the manifest. Raises OSError."""
    path = checkpoint / file_of(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The header by which torch's own reader finds the part that each rank needs.
    offsets = {name: {"saved_offsets": list(part.offset)} for name, part in tensors.items()}
    about = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
    digest = tensor_files.write({n: p.tensor for n, p in tensors.items()}, path, about)
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_for_rank_0(tensors: Tensors, checkpoint: Path, rank: int) -> None:
    """Write this rank's file into the folder of rank 0, which may not exist yet. Raises OSError."""
    marker = _marker(checkpoint, rank)
    try:
        write_whole(marker, json.dumps(write(tensors, checkpoint, rank)))
    except OSError as error:
        try:
            write_whole(marker, json.dumps({"fault": str(error)}))
        except OSError:
            marker.touch()  # a full disk may have room for a name
        raise


def _marker(checkpoint: Path, rank: int) -> Path:
    return (checkpoint / file_of(rank)).with_suffix(".json")


def gather(checkpoint: Path, num_ranks: int) -> dict[str, dict[str, Any]]:
    """Wait for the files of the other ranks. Returns their entries of the manifest. Raises
    OSError."""
    entries = {}
    deadline = time.monotonic() + PEER_SECONDS
    for rank in range(1, num_ranks):
        marker = _marker(checkpoint, rank)
        while not marker.exists():
            if time.monotonic() > deadline:
                raise OSError(f"rank {rank} has not written its part in {PEER_SECONDS:.0f} s")
            time.sleep(0.02)
        entry = json.loads(marker.read_text() or '{"fault": "the disk is full"}')
        if "fault" in entry:
            raise OSError(f"rank {rank}: {entry['fault']}")
        marker.unlink()  # not a part of the checkpoint
        entries[file_of(rank)] = entry
    return entries


def split(optimizer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Part]]:
    """(an optimizer's state without its tensors, the tensors by name). Scalars such as the count of
    steps stay in the state: they are the same on all ranks."""
    parts: dict[str, Part] = {}
    state: dict[Any, dict[str, Any]] = {}
    for number, items in optimizer.get("state", {}).items():
        state[number] = {}
        for key, item in items.items():
            if isinstance(item, Tensor) and item.ndim:
                parts[f"{number}.{key}"] = Part(item, (0,) * item.ndim)
            elif isinstance(item, Part):
                parts[f"{number}.{key}"] = item
            else:
                state[number][key] = item
    return {**optimizer, "state": state}, parts


def load(checkpoint: Path, settings: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """An optimizer's state: the settings that `split` left, and tensors that `target` makes. Each
    rank reads what its tensors need: whole ones, or parts of sharded ones (DTensor)."""
    reader = HuggingFaceStorageReader(str(checkpoint / FOLDER))
    metadata = reader.read_metadata().state_dict_metadata
    state = {number: dict(items) for number, items in settings["state"].items()}
    tensors = {}
    # `target` selects the part to read: a whole tensor, or the part that this rank owns.
    for name, about in metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        number, _, key = name.partition(".")
        tensors[name] = target(int(number), about.size, about.properties.dtype)
        state[int(number)][key] = tensors[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if tensors:
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    return {**settings, "state": state}


def on_cpu(number: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
