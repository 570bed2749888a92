"""What only a CUDA device can show: kernels that the CPU path does not use."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from stepping import stepper
from tiny_runs import MODEL
from torch import Tensor

from clipx.models.dual_encoder import DualEncoder
from clipx.models.packing import PADDING, group_by_length
from clipx.models.text_transformer import end_of
from clipx.models.transformer import Transformer
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.precision import build_precision, compute_dtype
from clipx.types import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


def captions(rows: int) -> Tensor:
    """(rows, 16) ids that end at different places."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, 49405, (rows, 16), generator=generator)
    for row in range(rows):
        text[row, 2 + row % 14 :] = 0
        text[row, 1 + row % 14] = 49407
    return text


def batch(rows: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
    views = {"image": image, "text": captions(rows)}
    return Batch(views, [str(i) for i in range(rows)], list(range(rows)), {})


def test_bf16_steps_on_one_batch_lower_its_loss_and_keep_weights_in_float32() -> None:
    torch.manual_seed(0)
    model = DualEncoder(MODEL).to(CUDA)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    dtype = build_precision("bf16", CUDA).dtype
    step = stepper(model, optimizer, dtype=dtype, device=CUDA, clip_grad_norm=1.0)
    losses = []
    for _ in range(30):
        metrics = step(batch()).metrics
        losses.append(metrics["loss"].item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.dtype == torch.float32 and p.device.type == "cuda" for p in model.parameters())
    assert metrics["loss"].dtype == torch.float32


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_equals_the_matmuls_of_the_cpu_with_gradients(causal: bool) -> None:
    torch.manual_seed(0)
    tower = Transformer(64, 3, 4, causal=causal).double()
    x = torch.randn(5, 9, 64, dtype=torch.float64)
    read = torch.tensor([0, 8, 3, 3, 1])
    results = []
    for device in (torch.device("cpu"), CUDA):
        tower = tower.to(device)
        rows = x.to(device).requires_grad_()
        out = tower(rows, read.to(device))
        gradients = torch.autograd.grad(out.square().sum(), [rows, *tower.parameters()])
        results.append([t.detach().cpu() for t in (out, *gradients)])
    for cpu, cuda in zip(*results, strict=True):
        # float64 sums in another order
        torch.testing.assert_close(cuda, cpu, rtol=1e-9, atol=1e-10)


def test_embeddings_on_the_device_equal_those_of_the_cpu() -> None:
    """Captions of many lengths, so that packing them is compared too."""
    torch.manual_seed(0)
    model = DualEncoder(MODEL).eval()
    text = captions(256 + 5)
    image = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(image), model.encode_text(text)
        model = model.to(CUDA)
        actual = model.encode_image(image.to(CUDA)), model.encode_text(text.to(CUDA))
    for value, reference in zip(actual, expected, strict=True):
        # unit rows; float32 sums in another order (TF32 is off by default for matmuls)
        torch.testing.assert_close(value.cpu(), reference, rtol=0, atol=1e-5)


def test_packed_captions_on_the_device_equal_those_of_the_cpu_with_gradients() -> None:
    torch.manual_seed(0)
    tower = DualEncoder(MODEL).text.double()
    text, results = captions(400), []
    assert len(group_by_length(sorted((end_of(text) + 1).tolist()), PADDING["cuda"])) == 2
    for device, padding in (("cpu", 100), ("cuda", 100), ("cuda", 2000)):
        tower = tower.to(device)
        with mock.patch.dict(PADDING, {device: padding}):
            out = tower(text.to(device))
        gradients = torch.autograd.grad(out.square().sum(), list(tower.parameters()))
        results.append([t.detach().cpu() for t in (out, *gradients)])
    for cpu, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(other, cpu, rtol=1e-9, atol=1e-10)


def test_auto_is_bfloat16_on_devices_that_have_it() -> None:
    expected = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    assert compute_dtype("auto", CUDA) == expected
