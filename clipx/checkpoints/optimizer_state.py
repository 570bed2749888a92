"""The optimizer's tensors, most of a checkpoint: a file of each rank that holds some.

    optimizer/rank_00000.safetensors     tensors by `number of the parameter`.`key`

The layout is that of torch.distributed.checkpoint's HuggingFaceStorageWriter: parts of a tensor say
in the header where in the whole they lie, so torch's own reader reshards them onto any number of
ranks. Nothing in it is pickled, unlike in its default layout. Ranks write without talking to one
another, as threads must not use collectives: beside its file a rank leaves `rank_00001.json`, its
size and hash, or what went wrong, and rank 0 waits for these.
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
"""How long rank 0 waits for the file of another rank."""


@dataclass(frozen=True)
class Part:
    """offset: in each dimension, of the first element in the whole tensor"""

    tensor: Tensor
    offset: tuple[int, ...]


Tensors = Mapping[str, Part]
Target = Callable[[int, torch.Size, torch.dtype], Tensor]
"""(number of the parameter, shape of the whole, dtype) -> a tensor to be filled"""


def file_of(rank: int) -> str:
    return f"{FOLDER}/rank_{rank:05d}.safetensors"


def write(tensors: Tensors, checkpoint: Path, rank: int) -> dict[str, Any]:
    """What the manifest says of the file. Raises OSError."""
    path = checkpoint / file_of(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = {name: {"saved_offsets": list(part.offset)} for name, part in tensors.items()}
    about = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"}
    digest = tensor_files.write({n: p.tensor for n, p in tensors.items()}, path, about)
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_for_rank_0(tensors: Tensors, checkpoint: Path, rank: int) -> None:
    """`checkpoint` is where rank 0 writes the rest, sooner or later than this. Raises OSError."""
    marker = _marker(checkpoint, rank)
    try:
        found = write(tensors, checkpoint, rank)
        _put(marker, found)
    except OSError as error:
        try:
            _put(marker, {"fault": str(error)})
        except OSError:
            marker.touch()  # a full disk may have room for a name
        raise


def _marker(checkpoint: Path, rank: int) -> Path:
    return (checkpoint / file_of(rank)).with_suffix(".json")


def _put(marker: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_whole(marker, json.dumps(content))


def gather(checkpoint: Path, num_ranks: int) -> dict[str, dict[str, Any]]:
    """What the manifest says of the files of the other ranks, once they are all there. Raises
    OSError."""
    found, deadline = {}, time.monotonic() + PEER_SECONDS
    for rank in range(1, num_ranks):
        marker = _marker(checkpoint, rank)
        while not marker.exists():
            if time.monotonic() > deadline:
                raise OSError(f"rank {rank} has not written its part in {PEER_SECONDS:.0f} s")
            time.sleep(0.02)
        about = json.loads(marker.read_text() or '{"fault": "not even a word could be written"}')
        if "fault" in about:
            raise OSError(f"rank {rank}: {about['fault']}")
        marker.unlink()
        found[file_of(rank)] = about
    return found


def split(optimizer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Part]]:
    """(an optimizer's state without its tensors, these by name). Scalars, like the count of steps,
    stay, which ranks have alike."""
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
    """An optimizer's state: what `split` left of it, and tensors that `target` makes and ranks
    fill with what they need, each for itself: whole ones, or parts of sharded ones (DTensor)."""
    reader = HuggingFaceStorageReader(str(checkpoint / FOLDER))
    found = reader.read_metadata().state_dict_metadata
    state = {number: dict(items) for number, items in settings["state"].items()}
    tensors = {}
    for name, about in found.items():
        assert isinstance(about, TensorStorageMetadata)
        number, _, key = name.partition(".")
        tensors[name] = target(int(number), about.size, about.properties.dtype)
        state[int(number)][key] = tensors[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant
        if tensors:
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    return {**settings, "state": state}


def on_cpu(number: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
