"""What `encode_image` and `encode_text` take and return, and the arguments of `load`."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tiny_runs import MODEL, picture, png

import clipx
from clipx import model_inputs, progress
from clipx.embed import Encoder
from clipx.models.dual_encoder import DualEncoder
from clipx.types import UserError

IMAGES = [picture("red", "bar", 1), picture("blue", "pole", 2), picture("gray", "square", 3)]
TEXTS = ["a red bar", "a blue pole", "gray"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(DualEncoder(MODEL), MODEL, source="runs/a at step 2")


@pytest.fixture(scope="module")
def expected(encoder: Encoder) -> torch.Tensor:
    return encoder.encode_image(IMAGES)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_bytes_arrays_and_stacks_give_the_rows_of_the_pillow_images(
    encoder: Encoder, expected: torch.Tensor
) -> None:
    arrays = [np.array(image) for image in IMAGES]
    rgba = np.array(IMAGES[0].convert("RGBA"))
    assert_close(encoder.encode_image([png(image) for image in IMAGES]), expected)
    assert_close(encoder.encode_image(png(IMAGES[0])), expected[:1])
    assert_close(encoder.encode_image(arrays), expected)
    assert_close(encoder.encode_image(np.stack(arrays)), expected)
    assert_close(encoder.encode_image(arrays[0]), expected[:1])
    assert_close(encoder.encode_image(rgba), expected[:1])
    gray = np.array(IMAGES[0].convert("L"))
    assert_close(encoder.encode_image(gray), encoder.encode_image(IMAGES[0].convert("L")))
    assert_close(encoder.encode_image(gray[..., None]), encoder.encode_image(gray))


def test_a_file_and_its_pillow_image_are_turned_by_their_exif_tag(
    encoder: Encoder, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    picture("red", "bar", 1).crop((0, 0, 12, 20)).save(path, exif=exif)
    stored = np.array(Image.open(path))
    shown = encoder.encode_image(np.rot90(stored, -1))
    for same in (path, path.read_bytes(), Image.open(path), Image.open(path).convert("RGB")):
        assert_close(encoder.encode_image(same), shown)
        found = encoder.encode_image(same, exif_orientation=False)
        assert_close(found, encoder.encode_image(stored))
    assert_close(encoder.encode_image(ImageOps.exif_transpose(Image.open(path))), shown)
    assert (shown - encoder.encode_image(stored)).abs().max() > 1e-3


def test_generators_sets_of_paths_and_arrays_of_texts_are_read(
    encoder: Encoder, expected: torch.Tensor, tmp_path: Path
) -> None:
    assert_close(encoder.encode_image(image for image in IMAGES), expected)
    path = tmp_path / "a.png"
    IMAGES[1].save(path)
    assert_close(encoder.encode_image(np.array([str(path)])), expected[1:2])
    assert_close(encoder.encode_image({path: 1}), expected[1:2])
    texts = encoder.encode_text(TEXTS)
    assert_close(encoder.encode_text(text for text in TEXTS), texts)
    assert_close(encoder.encode_text(np.array(TEXTS)), texts)
    assert encoder.encode_image(iter(())).shape == (0, 16)
    assert encoder.encode_text([]).shape == (0, 16)


def test_a_generator_is_read_one_batch_ahead_at_most(encoder: Encoder) -> None:
    """A generator may hold more images than the memory."""
    num_read = 0
    num_at_encode = []

    def read() -> Any:
        nonlocal num_read
        for image in IMAGES:
            num_read += 1
            yield image

    encode = encoder.model.encode_image

    def noted(pixels: torch.Tensor) -> torch.Tensor:
        num_at_encode.append(num_read)
        return encode(pixels)

    encoder.model.encode_image = noted  # type: ignore[method-assign]
    try:
        encoder.encode_image(read(), batch_size=1)
    finally:
        del encoder.model.encode_image
    assert num_at_encode == [1, 2, 3]


def test_numpy_output_has_the_same_numbers(encoder: Encoder, expected: torch.Tensor) -> None:
    rows = encoder.encode_image(IMAGES, output="numpy")
    assert isinstance(rows, np.ndarray)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected.numpy())
    texts = encoder.encode_text(TEXTS, output="numpy")
    assert isinstance(texts, np.ndarray)
    assert texts.shape == (3, 16)


def test_a_skipped_image_has_a_row_of_nan_in_its_place_and_one_warning_names_it(
    encoder: Encoder, expected: torch.Tensor, tmp_path: Path
) -> None:
    missing = tmp_path / "none.png"
    given = [IMAGES[0], missing, IMAGES[1], b"<html>", IMAGES[2]]
    with pytest.warns(UserWarning, match="2 of 5 images were skipped") as caught:
        rows = encoder.encode_image(given, on_error="skip", batch_size=2)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "images[1]: image " in text
    assert "none.png cannot be read: No such file" in text
    assert "images[3]: 6 bytes: not readable as JPEG" in text
    assert caught[0].filename == __file__, "the warning shows the line of the caller"
    assert rows.isnan().any(1).tolist() == [False, True, False, True, False]
    assert rows[1].isnan().all()
    assert_close(rows[~rows.isnan().any(1)], expected)


def test_a_batch_in_which_all_are_skipped_has_rows_too(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match="2 of 2"):
        rows = encoder.encode_image([b"", b"x"], on_error="skip", output="numpy")
    assert np.isnan(rows).all()
    assert rows.shape == (2, 16)


def test_a_missing_caption_is_an_error_or_skipped(encoder: Encoder) -> None:
    given: Any = ["a red bar", math.nan, None]
    with pytest.raises(UserError, match=r"texts\[1\]: a text must be a str, not nan"):
        encoder.encode_text(given)
    with pytest.warns(UserWarning, match=r"2 of 3 texts were skipped.*texts\[2\].*None"):
        rows = encoder.encode_text(given, on_error="skip")
    assert_close(rows[:1], encoder.encode_text("a red bar"))
    assert rows[1:].isnan().all()


def test_nothing_is_warned_of_when_nothing_is_skipped(encoder: Encoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_image(IMAGES, on_error="skip")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images must be a path, bytes.*not int"),
        ([3], r"images\[0\]: an image must be a path, bytes .*not int"),
        (np.zeros((4, 4, 3)), r"\(4, 4, 3\) float64; of floats in \[0, 1\], give \(255 \* x\)"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) is neither .* give a tensor"),
        ([np.zeros((3, 8, 8), np.uint8)], r"must be \(H, W, 3\).*not \(3, 8, 8\) uint8"),
        (np.zeros(5, np.uint8), r"not \(5,\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), r"not \(0, 4, 3\) uint8"),
        ("https://host/cat.png", "cannot be read: No such file.*; download it first"),
        ("a\0b", "cannot be read: embedded null"),
        (b"", r"0 bytes: 0 bytes"),
    ],
)
def test_an_image_of_another_kind_is_refused(encoder: Encoder, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder.encode_image(images)


def test_wrong_arguments_are_refused_before_anything_is_read(encoder: Encoder) -> None:
    never: Any = iter(IMAGES)
    with pytest.raises(UserError, match="output 'list' is neither 'torch' nor 'numpy'"):
        encoder.encode_image(never, output="list")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="on_error 'ignore' is neither"):
        encoder.encode_image(never, on_error="ignore")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="batch_size 0 is below 1"):
        encoder.encode_text(TEXTS, batch_size=0)
    with pytest.raises(UserError, match="texts must be a str, or several, not bytes"):
        encoder.encode_text(b"a cat")  # type: ignore[call-overload]
    assert len(list(never)) == len(IMAGES)


def test_progress_ends_with_the_number_of_images(
    encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.encode_image(IMAGES, batch_size=2)
    assert capsys.readouterr().err == ""
    encoder.encode_image(IMAGES, batch_size=2, progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("images: 3 of 3, ")
    encoder.encode_text((text for text in TEXTS), progress=True)
    assert capsys.readouterr().err.splitlines()[-1].startswith("texts: 3, ")


def test_a_generator_shows_progress_now_and_then(
    encoder: Encoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    encoder.encode_image(iter(IMAGES), batch_size=2, progress=True)
    starts = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert starts == ["images: 2", "images: 3", "images: 3"]


def test_similarity_takes_inputs_and_embeddings(encoder: Encoder, expected: torch.Tensor) -> None:
    texts = encoder.encode_text(TEXTS[:2])
    cosines = encoder.similarity(IMAGES, TEXTS[:2])
    assert cosines.shape == (3, 2)
    assert cosines.dtype == torch.float32
    assert_close(cosines, expected @ texts.T)
    assert_close(encoder.similarity(expected, 3 * texts), cosines)
    assert_close(encoder.similarity(expected.numpy(), texts.numpy().astype(np.float64)), cosines)
    assert_close(encoder.similarity(IMAGES[0], expected), expected[:1] @ expected.T)
    with pytest.raises(UserError, match=r"embeddings of this model are \(N, 16\), not \(2, 15\)"):
        encoder.similarity(IMAGES, torch.zeros(2, 15))


def test_the_scale_is_the_exponential_and_the_temperature_its_inverse(encoder: Encoder) -> None:
    assert encoder.scale == pytest.approx(math.exp(encoder.model.logit_scale.item()))
    assert encoder.temperature == pytest.approx(1 / encoder.scale)
    assert not hasattr(encoder, "logit_scale"), "that name is the parameter's, which is a log"


def test_zero_shot_refuses_a_text_in_place_of_a_list(encoder: Encoder) -> None:
    image = IMAGES[0]
    with pytest.raises(UserError, match=r"class_names is the text 'cat'.*\['cat', 'dog'\]"):
        clipx.zero_shot(encoder, image, "cat")
    with pytest.raises(UserError, match=r"templates is the text 'a \{c\}'"):
        clipx.zero_shot(encoder, image, ["cat", "dog"], "a {c}")
    with pytest.raises(UserError, match=r"class_names \['cat'\] has 1 of at least 2"):
        clipx.zero_shot(encoder, image, ["cat"])
    with pytest.raises(UserError, match="class_names must be texts, and one is 3"):
        clipx.zero_shot(encoder, image, ["cat", 3])  # type: ignore[list-item]
    with pytest.raises(UserError, match="templates is empty"):
        clipx.zero_shot(encoder, image, ["cat", "dog"], [])


def test_zero_shot_takes_embeddings(encoder: Encoder, expected: torch.Tensor) -> None:
    found = clipx.zero_shot(encoder, expected, ["cat", "dog"])
    assert_close(found, clipx.zero_shot(encoder, IMAGES, ["cat", "dog"]))


def test_an_encoder_shows_what_it_is(encoder: Encoder) -> None:
    text = repr(encoder)
    assert text.startswith("Encoder(runs/a at step 2: ")
    assert text.endswith("M parameters, D = 16, 32 px, 16 tokens, float32 on cpu)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' is unknown; use auto, cpu, cuda"),
        ({"device": "cuda:99"}, r"device cuda:99: \d+ CUDA devices are visible; use device='auto'"),
        ({"dtype": "bf16"}, "dtype 'bf16' is not one of float32, bfloat16, float16"),
        ({"dtype": torch.float64}, "dtype 'float64' is not one of"),
    ],
)
def test_a_device_or_dtype_that_will_not_do_is_told_before_the_model_is_read(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        clipx.load("no such folder", **options)


def test_devices_and_dtypes_have_names() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert model_inputs.device_of("auto").type == expected
    assert model_inputs.dtype_of("bfloat16") == model_inputs.dtype_of(torch.bfloat16)
    assert model_inputs.dtype_of("float16") == torch.float16
