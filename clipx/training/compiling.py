"""torch.compile for the towers, in place: the names of parameters stay.

The loss is not compiled: it is a few large matmuls and exchanges between ranks. So there is nothing
to gain from compiling the whole step.
"""

from __future__ import annotations

from typing import Any, Literal

from clipx.models.dual_encoder import DualEncoder

CompileKind = Literal["none", "towers"]


def compile_towers(encoder: DualEncoder, *, backend: Any = "inductor") -> None:
    """Two compilations of the text tower, whatever lengths captions have: at the second length,
    dynamo makes it a variable of the graph. Micro-batches double all that, as they run with and
    without a graph for gradients.

    backend: one of torch's names, or a function of its kind
    """
    encoder.visual.compile(backend=backend)
    encoder.text.compile(backend=backend)
