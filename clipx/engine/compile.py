"""torch.compile for the blocks of the towers, in place: names of parameters stay."""

from __future__ import annotations

from typing import Literal

from clipx.models.dual_encoder import DualEncoder

CompileKind = Literal["none", "blocks"]


def compile_blocks(encoder: DualEncoder, *, backend: str = "inductor") -> None:
    """Blocks of a tower are alike, so one compilation serves them all, where whole towers would be
    as many times as much code. The length of captions is a variable of the graph: dynamo finds
    that out at the second length, and compiles for no third."""
    for block in encoder.blocks():
        block.compile(backend=backend)
