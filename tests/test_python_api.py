"""`import clipx` as the package's docstring shows it."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, picture, write_config, write_corpus

import clipx
from clipx import cli
from clipx.data.decode import pixels_of
from clipx.types import EmbeddingError, UserError

WORDS = ["a red square", "a blue bar on a noisy ground", "pole"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    config = write_config(folder, write_corpus(folder / "corpus"), duration="2 steps")
    cli.main(["train", str(config)])
    return folder / "run"


@pytest.fixture(scope="module")
def encoder(run: Path) -> clipx.Encoder:
    return clipx.load(run)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Unit rows: float32 rounding, which depends on how many rows are encoded together."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_image_has_one_embedding_as_a_path_a_picture_a_tensor_or_in_a_list(
    encoder: clipx.Encoder, tmp_path: Path
) -> None:
    image = picture("red", "bar", 1).resize((40, 50))
    path = tmp_path / "image.png"
    image.save(path)
    tensor = pixels_of(image)
    expected = encoder.encode_image(path)
    assert expected.shape == (1, 16)
    assert expected.dtype == torch.float32
    for given in (str(path), image, tensor, tensor[None], [path], [tensor], (image,)):
        assert_close(encoder.encode_image(given), expected)
    mixed = encoder.encode_image([picture("blue", "pole", 2), path, image], batch_size=2)
    assert_close(mixed[1:], expected.expand(2, -1))
    assert (mixed[0] - mixed[1]).norm() > 1e-3


def test_a_file_that_will_not_do_is_named_with_the_remedy(
    encoder: clipx.Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    picture("red", "bar", 1).resize((40, 50)).save(path)
    with pytest.raises(
        UserError, match=r"image\.png: 40 x 50 pixels exceed max_image_pixels 1999; raise"
    ):
        encoder.encode_image(path, max_image_pixels=1999)
    assert encoder.encode_image(path, max_image_pixels=2000).shape == (1, 16)
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"image .*image\.png: not readable as JPEG, PNG, WEBP"):
        encoder.encode_image([path])


def test_rows_do_not_depend_on_the_batch_size(encoder: clipx.Encoder) -> None:
    images = [picture("green", "square", index) for index in range(5)]
    assert_close(encoder.encode_image(images, batch_size=2), encoder.encode_image(images))
    assert_close(encoder.encode_text(WORDS, batch_size=1), encoder.encode_text(WORDS))


def test_a_text_has_one_embedding_alone_or_in_a_list(encoder: clipx.Encoder) -> None:
    rows = encoder.encode_text(WORDS)
    assert rows.shape == (3, 16)
    for word, row in zip(WORDS, rows, strict=True):
        assert_close(encoder.encode_text(word), row[None])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3), rtol=0, atol=1e-5)


def test_a_caption_longer_than_the_model_reads_is_cut(encoder: clipx.Encoder) -> None:
    long = "red " * 100
    assert_close(encoder.encode_text(long), encoder.encode_text("red " * 200))


def test_zero_shot_gives_probabilities_in_the_order_of_the_similarities(
    encoder: clipx.Encoder,
) -> None:
    images = [picture("red", "square", 1), picture("blue", "pole", 2)]
    rows = clipx.zero_shot(encoder, images, WORDS)
    assert rows.shape == (2, 3)
    torch.testing.assert_close(rows.sum(1), torch.ones(2), rtol=0, atol=1e-6)
    scores = encoder.encode_image(images) @ encoder.encode_text(WORDS).T
    assert torch.equal(rows.argsort(1), scores.argsort(1))
    expected = (encoder.scale * scores).softmax(1)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-6)


def test_a_template_is_filled_with_the_class_name(encoder: clipx.Encoder) -> None:
    image = picture("red", "square", 1)
    one = clipx.zero_shot(encoder, image, ["red", "blue"], ["a {c} square"])
    assert_close(one, clipx.zero_shot(encoder, image, ["a red square", "a blue square"]))
    with pytest.raises(UserError, match="no place for the class name"):
        clipx.zero_shot(encoder, image, ["red", "blue"], ["a square"])


@pytest.mark.parametrize("training", [True, False])
def test_encoding_leaves_training_mode_and_all_random_generators_as_they_were(
    encoder: clipx.Encoder, training: bool
) -> None:
    encoder.model.train(training)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    encoder.encode_image(picture("red", "square", 1))
    encoder.encode_text(WORDS)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert all(module.training == training for module in encoder.model.modules())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    encoder.model.eval()


def test_the_towers_run_in_evaluation_mode_without_a_graph(
    encoder: clipx.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model has no dropout or batch statistics that would show it."""
    modes = []

    def noted(image: torch.Tensor) -> torch.Tensor:
        modes.append((encoder.model.training, torch.is_grad_enabled()))
        return torch.full((len(image), 16), 0.25)

    encoder.model.train()
    monkeypatch.setattr(encoder.model, "encode_image", noted)
    encoder.encode_image(picture("red", "square", 1))
    encoder.model.eval()
    assert modes == [(False, False)]


def damaged(encoder: clipx.Encoder, name: str, value: float) -> clipx.Encoder:
    """A copy in which one number, or every one, of a parameter is replaced."""
    out = copy.deepcopy(encoder)
    parameter = out.model.get_parameter(name)
    with torch.no_grad():
        parameter.mul_(0) if value == 0 else parameter.view(-1)[0].fill_(value)
    return out


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("visual.proj", float("nan"), "1 parameters are not finite, first visual.proj"),
        ("visual.proj", float("inf"), "1 parameters are not finite, first visual.proj"),
        ("visual.proj", 0.0, "all parameters of visual are finite, so the tower gives zeros"),
        ("text.text_projection", float("nan"), "first text.text_projection"),
        ("text.text_projection", 0.0, "all parameters of text are finite"),
    ],
)
def test_embeddings_that_no_score_can_be_made_of_are_an_error(
    encoder: clipx.Encoder, name: str, value: float, reason: str, tmp_path: Path
) -> None:
    """A maximum takes NaN for the largest, so that it would score as well as chance or better."""
    wrong = damaged(encoder, name, value)
    if name.startswith("visual"):
        path = tmp_path / "cat.png"
        picture("red", "square", 1).save(path)
        with pytest.raises(EmbeddingError, match=f"{re.escape(str(path))}.*{reason}"):
            wrong.encode_image([path])
    else:
        with pytest.raises(EmbeddingError, match=f"'a cat'.*{reason}"):
            wrong.encode_text(["a cat"])


def test_a_temperature_that_is_not_finite_is_an_error(encoder: clipx.Encoder) -> None:
    with pytest.raises(UserError, match="scale is nan: the weights of"):
        _ = damaged(encoder, "logit_scale", float("nan")).scale


def test_an_encoding_that_fails_leaves_the_training_mode_too(
    encoder: clipx.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on after an evaluator that ran out of memory."""

    def out_of_memory(image: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("for the test")

    encoder.model.train()
    monkeypatch.setattr(encoder.model, "encode_image", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode_image(picture("red", "square", 1))
    assert encoder.model.training
    encoder.model.eval()


def test_encoding_has_no_graph_and_no_effect_on_gradients(encoder: clipx.Encoder) -> None:
    assert not encoder.encode_text(WORDS).requires_grad
    assert all(p.grad is None and p.requires_grad for p in encoder.model.parameters())


def test_a_run_loads_its_newest_checkpoint_and_a_checkpoint_itself(
    encoder: clipx.Encoder, run: Path
) -> None:
    other = clipx.load(str(run / "checkpoints" / "step_00000002"))
    assert torch.equal(other.encode_text(WORDS), encoder.encode_text(WORDS))
    assert not other.model.training


@pytest.mark.parametrize("wrong", [torch.zeros(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_a_tensor_of_another_kind_is_refused(encoder: clipx.Encoder, wrong: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"must be \(3, H, W\) uint8"):
        encoder.encode_image(wrong)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        clipx.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no usable checkpoint"):
        clipx.load(tmp_path)


def test_the_package_offers_what_it_says_and_waits_for_torch_until_it_is_used() -> None:
    assert all(hasattr(clipx, name) for name in clipx.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = clipx.nothing
    code = "import sys, clipx, clipx.cli; clipx.cli.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr
