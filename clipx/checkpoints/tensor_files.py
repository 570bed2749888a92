"""Safetensors files, written tensor by tensor and hashed meanwhile.

`safetensors.torch.save_file` first copies everything that it writes, and a hash afterwards reads
the file again; a checkpoint needs neither. The format: 8 bytes of length, a JSON header padded with
blanks to a multiple of 8, then the bytes of the tensors without gaps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = 16 << 20  # bytes that are written and hashed at a time, while they are in the cache


def write(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str] = {}) -> str:
    """Write a file and wait until it is on the disk. Returns its SHA-256. Raises OSError.

    about: texts for the header
    """
    # Large elements first, so that each tensor is aligned to its element size.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        begin = end
        end += tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            _put(file.fileno(), memoryview(piece), digest)
        for name in ordered:
            # No copy where the tensor is on the CPU and contiguous, as in a checkpoint.
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")
            _put(file.fileno(), data, digest)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _put(descriptor: int, data: memoryview, digest: hashlib._Hash) -> None:
    """Write and hash. Both release the GIL, so that steps run meanwhile."""
    for begin in range(0, len(data), _PIECE):
        piece = data[begin : begin + _PIECE]
        digest.update(piece)
        while piece:  # a write may end early
            piece = piece[os.write(descriptor, piece) :]
