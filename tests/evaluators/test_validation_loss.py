"""The loss of held-out pairs: exact over the whole set, in batches of a stated size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import MODEL, write_corpus, write_tar
from torch import Tensor
from torch.nn import functional as F

from clipx.config import build
from clipx.embed import Encoder
from clipx.evaluators import validation_loss
from clipx.evaluators.distributed import run_evaluator
from clipx.models.dual_encoder import DualEncoder
from clipx.types import Setting, UserError

COUNT = 23  # the last of batches of 8 has 7 pairs


def encoder(**changes: Any) -> Encoder:
    torch.manual_seed(0)
    model_json = MODEL | changes
    model = DualEncoder(model_json)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Encoder(model, model_json)


def config(corpus: Path, **settings: Any) -> Any:
    data = {"source": {"name": "webdataset", "shards": str(corpus)}, "batch_size": 8} | settings
    return build(validation_loss.Config, data, where="of the test")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "held_out", samples=COUNT, shards=3)


def features(model: Encoder, evaluator: validation_loss.ValidationLoss) -> tuple[Tensor, Tensor]:
    image = model.encode_image([evaluator.images.image(number) for number in range(COUNT)])
    return image.double(), model.encode_text(evaluator.captions).double()


def test_the_loss_is_that_of_open_clips_trainer_over_batches_with_a_short_last_one(
    corpus: Path,
) -> None:
    model = encoder()
    settings = config(corpus)
    evaluator = settings.build()
    assert [text.split()[0] for text in evaluator.captions] == [str(n) for n in range(COUNT)]
    image, text = features(model, evaluator)
    total = 0.0
    for first in range(0, COUNT, 8):
        logits = model.scale * image[first : first + 8] @ text[first : first + 8].T
        labels = torch.arange(len(logits))
        both = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
        total += both.item() / 2 * len(logits)
    metrics = run_evaluator(settings, model, Setting()).metrics
    assert metrics["loss"] == pytest.approx(total / COUNT, abs=1e-5)
    assert metrics["num_samples"] == COUNT
    # Batches of another size are another task.
    other = run_evaluator(config(corpus, batch_size=COUNT), model, Setting()).metrics
    assert abs(other["loss"] - metrics["loss"]) > 0.1


def test_the_sigmoid_loss_takes_the_models_bias(corpus: Path) -> None:
    model = encoder(init_logit_scale=math.log(10), init_logit_bias=-10.0)
    bias = model.model.logit_bias
    assert bias is not None
    settings = config(corpus, loss="sigmoid", batch_size=COUNT)
    image, text = features(model, settings.build())
    logits = model.scale * image @ text.T + bias.item()
    signs = 2 * torch.eye(COUNT) - 1
    expected = -F.logsigmoid(signs * logits).sum(1).mean().item()
    found = run_evaluator(settings, model, Setting()).metrics["loss"]
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="model has none; use loss=infonce"):
        run_evaluator(settings, encoder(), Setting())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": {"name": "infonce", "false_negatives": "caption"}}, "needs the caption"),
        ({"caption_field": "title", "source": {"name": "table", "path": "none.csv"}}, "none.csv"),
        ({"source": {"name": "synthetic", "samples": 1, "shards": 1}}, "one pair"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    corpus: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        config(corpus, **settings).build()


def test_a_sample_without_a_caption_is_an_error_that_names_it(tmp_path: Path, corpus: Path) -> None:
    write_tar(corpus / "99.tar", {"a.png": b"", "a.json": b"{}"})
    with pytest.raises(UserError, match=r"test sample 99\.tar/a of .*no text in captions or txt"):
        config(corpus).build()
