"""Losses on a CUDA device, where TF32 and bfloat16 lie in wait."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference import infonce_rows, sigmoid_rows
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, sigmoid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("loss", [infonce.InfoNCE(), sigmoid.Sigmoid()])
def test_float32_losses_are_exact_with_tf32_and_autocast_on(loss: Any) -> None:
    """TF32 has 10 bits of mantissa: logits near 100 would be off by 0.06."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(300, 64, generator=generator), dim=-1)
    text = F.normalize(image + 0.1 * torch.randn(300, 64, generator=generator), dim=-1)
    given = [image, text, torch.tensor(math.log(100.0)), torch.tensor(-10.0)]
    exact = [x.double().requires_grad_() for x in given]
    cuda = [x.cuda().requires_grad_() for x in given]
    is_sigmoid = isinstance(loss, sigmoid.Sigmoid)
    expected = (sigmoid_rows(*exact) if is_sigmoid else infonce_rows(*exact[:3])).mean()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = loss(*cuda[:2], logit_scale=cuda[2], logit_bias=cuda[3], pool=LocalPool())
        out.loss.backward()
    finally:
        torch.set_float32_matmul_precision(before)
    expected.backward()
    torch.testing.assert_close(out.loss.cpu().double(), expected.detach(), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(cuda[:2], exact[:2], strict=True):
        assert mine.grad is not None
        # weights are softmaxes of logits that float32 has to 1e-5, times the scale of 100 / 300
        torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=1e-3, atol=1e-5)
