"""What the image tower does beyond open_clip's embeddings, which test_dual_encoder.py compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clipx.models.vit import VisionTransformer, keep_patches

CFG: dict[str, Any] = {
    "image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32
}  # fmt: skip


def tower(**extra: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(24, CFG | extra, quick_gelu=False).double()


def images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 64, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 0.75, 0.99])
def test_as_many_patches_are_kept_as_in_open_clip(probability: float) -> None:
    from open_clip.transformer import PatchDropout

    reference = PatchDropout(probability, exclude_first_token=False)
    expected = reference(torch.zeros(2, 16, 5)).shape[1]
    made = tower(patch_dropout=probability)
    assert made.num_kept == expected
    assert made.num_draws == (16 if probability > 0 else 0)


def test_the_patches_of_the_smallest_draws_are_kept_in_their_order() -> None:
    patches = torch.arange(8.0).view(2, 4, 1)
    draws = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.3, 0.4, 0.5, 0.6]])
    assert keep_patches(patches, draws, 2).tolist() == [[[1], [3]], [[4], [5]]]


def test_dropping_patches_equals_a_tower_that_never_saw_them() -> None:
    """Blacked-out patches of one tower change nothing where the other's draws drop them."""
    made = tower(patch_dropout=0.5).train()
    draws = torch.arange(16.0).expand(3, 16) / 16
    image = images()
    black = image.clone()
    black[:, :, 32:] = 0  # the last eight patches
    seen = image.clone()
    seen[:, :, :16] = 0
    assert torch.equal(made(image, draws), made(black, draws))
    assert not torch.equal(made(image, draws), made(seen, draws))


def test_draws_are_per_image_and_evaluation_takes_none() -> None:
    made = tower(patch_dropout=0.5)
    draws = torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    image = images()
    alone = torch.cat([made(image[k : k + 1], draws[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(made(image, draws), alone, rtol=1e-12, atol=1e-12)
    torch.manual_seed(0)
    first, second = made(image), made(image)
    assert not torch.equal(first, second), "without draws they are drawn anew"
    made.eval()
    whole = tower().eval()
    whole.load_state_dict(made.state_dict())
    assert torch.equal(made(image, draws), whole(image))


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_checkpointing_changes_no_gradient(probability: float) -> None:
    made = tower(patch_dropout=probability).train()
    draws = torch.rand(3, 16, generator=torch.Generator().manual_seed(5))
    results = []
    for enable in (False, True):
        made.transformer.grad_checkpointing = enable
        out = made(images(), draws)
        results.append(torch.autograd.grad(out.square().sum(), list(made.parameters())))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)
