"""What each rank computes of a bag-of-tokens head. The test files judge it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.distributed.pool import PoolConfig, build_pool
from clipx.distributed.runtime import Runtime
from clipx.objectives.bag_of_tokens import TokenHead

LOCAL_ROWS, WIDTH, VOCABULARY = 3, 5, 11


def rows(step: int, size: int) -> tuple[Tensor, Tensor]:
    """Embeddings and tokens of a global batch; captions of different lengths, padded by 0."""
    generator = torch.Generator().manual_seed(step)
    embedding = torch.randn(size, WIDTH, generator=generator)
    tokens = torch.randint(1, VOCABULARY, (size, 6), generator=generator)
    for row in range(size):
        tokens[row, 2 + row % 5 :] = 0
    return embedding, tokens


def train(runtime: Runtime, kind: Any) -> dict[str, Any]:
    """Two steps with this rank's rows."""
    return steps(runtime.rank, runtime.world_size, LOCAL_ROWS, PoolConfig(kind=kind))


def steps(rank: int, world_size: int, local_rows: int, config: PoolConfig) -> dict[str, Any]:
    """The counts, and loss and gradient of the head in the second step."""
    torch.manual_seed(0)
    head = TokenHead(WIDTH, VOCABULARY, frozenset({0}))
    pool = build_pool(config, world_size=world_size)
    for step in range(2):
        embedding, tokens = rows(step, world_size * local_rows)
        mine = slice(rank, None, world_size)
        longest = int((tokens[mine] != 0).sum(1).max())  # each rank pads to its own longest
        tokens = tokens[mine, :longest]
        head.zero_grad()
        head.count(tokens, pool)
        loss = head(embedding[mine], tokens)[0].mean()
        loss.backward()
    gradient = head.linear.weight.grad
    assert gradient is not None
    return {
        "loss": loss.item(),
        "gradient": gradient.numpy(),
        "captions_with": head.captions_with.tolist(),
        "num_captions": int(head.num_captions),
    }
