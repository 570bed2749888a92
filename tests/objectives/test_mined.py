"""Images and texts with mined negatives."""

from __future__ import annotations

import pytest
import torch
from stepping import batch, exact, stepper
from tiny_runs import MODEL
from torch import Tensor

from clipx.data.preprocessing import normalize
from clipx.distributed.pool import LocalPool
from clipx.losses.infonce import InfoNCE
from clipx.objectives import image_text, slip, two_view
from clipx.objectives.image_text import ImageText
from clipx.objectives.objective import data_use
from clipx.types import Batch

END = MODEL["text_cfg"]["vocab_size"] - 1
COUNTS = [2, 1, 2, 0, 2, 2]


def with_negatives(rows: int = 6) -> Batch:
    """Row r has COUNTS[r] negatives of two places; one of row 0 is its caption, one of row 1 that
    of row 2."""
    given = batch(rows)
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(1, 40, (rows, 2, 9), generator=generator)
    texts[:, :, 6] = END
    texts[:, :, 7:] = 0
    own = torch.zeros(rows, 9, dtype=torch.int64)
    own[:, :8] = given.views["text"]
    for row, count in enumerate(COUNTS[:rows]):
        texts[row, count:] = own[row]
    texts[0, 1] = own[0]
    texts[1, 0] = own[2]
    counts = torch.tensor(COUNTS[:rows])
    views = {**given.views, "negative_text": texts, "num_negatives": counts}
    return Batch(views, given.keys, given.positions, {})


def by_hand(objective: ImageText, given: Batch) -> Tensor:
    """One image at a time. Row 0's own caption and row 2's caption among the negatives of row 1 do
    not count for rows 0 and 2; places that are filled up never do."""
    encoder = objective.encoder
    image = encoder.encode_image(normalize(given.views["image"]))
    text = encoder.encode_text(given.views["text"])
    negatives = encoder.encode_text(given.views["negative_text"].flatten(0, 1)).view(6, 2, -1)
    scale = encoder.logit_scale.exp()
    total = image.new_zeros(())
    for i in range(6):
        logits = [scale * image[i] @ other for other in text]
        for row, count in enumerate(COUNTS):
            for place in range(count):
                is_own = (i, row, place) in {(0, 0, 1), (2, 1, 0)}
                if not is_own:
                    logits.append(scale * image[i] @ negatives[row, place])
        back = [scale * text[i] @ other for other in image]
        for side in (logits, back):
            total = total + torch.stack(side).logsumexp(0) - side[i]
    return total / 12


def test_each_image_is_contrasted_with_all_negatives_of_the_batch() -> None:
    objective = ImageText(exact(), InfoNCE(), normalize=normalize)
    given = with_negatives()
    features = objective.embed(objective.prepare(given))
    assert features["negatives"].shape == (6, 2, MODEL["embed_dim"])
    out = objective.loss(features, LocalPool())
    expected = by_hand(objective, given)
    torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=1e-12)
    parameters = list(objective.parameters())
    gradients = torch.autograd.grad(out.loss, parameters)
    for one, other in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class Recording(torch.optim.SGD):
    gradients: list[Tensor]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = self.param_groups[0]["params"]
        self.gradients = [p.grad.clone() for p in parameters]


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro: int) -> None:
    recorded = []
    for size in (None, micro):
        encoder = exact()
        optimizer = Recording(encoder.parameters(), lr=0.0)
        stepper(encoder, optimizer, micro_batch_size=size)(with_negatives())
        recorded.append(optimizer.gradients)
    for one, other in zip(*recorded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_image_text_alone_takes_them() -> None:
    assert data_use(image_text.Config()).takes_negatives
    assert not data_use(slip.Config()).takes_negatives
    assert not data_use(two_view.Config()).takes_negatives
