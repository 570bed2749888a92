"""Each kind of image file becomes the RGB of a screen, or a BadImage with the reason."""

from __future__ import annotations

import io
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, jpeg, picture, png, png_claiming

from clipx.data import decode as module
from clipx.data.decode import BadImage, decode, pixels_of


def rgb_at(data: bytes, x: int = 0, y: int = 0) -> tuple[int, ...]:
    return tuple(decode(data)[:, y, x].tolist())


def without_bytes(value: Any) -> str | None:
    """A test's name need not hold the file."""
    return "" if isinstance(value, bytes) else None


def filled(mode: str, color: Any, kind: str = "PNG", **options: Any) -> bytes:
    return encoded(Image.new(mode, (3, 2), color), kind, **options)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    return encoded(image, "PNG", **options)


@pytest.mark.parametrize(
    ("data", "x", "expected"),
    [
        (filled("RGB", (1, 2, 3)), 0, (1, 2, 3)),
        (filled("1", 1), 0, (255, 255, 255)),
        (filled("L", 77), 0, (77, 77, 77)),
        (filled("LA", (0, 255)), 0, (0, 0, 0)),
        (filled("LA", (0, 0)), 0, (255, 255, 255)),
        (filled("RGBA", (255, 0, 0, 255)), 0, (255, 0, 0)),
        (filled("RGBA", (255, 0, 0, 0)), 0, (255, 255, 255)),
        (filled("RGBA", (255, 0, 0, 51)), 0, (255, 204, 204)),  # one fifth red, four fifths white
        (filled("I;16", 0x8001), 0, (0x80, 0x80, 0x80)),
        (filled("I;16", 0xFFFF), 0, (255, 255, 255)),
        (palette(), 0, (10, 20, 30)),
        (palette(), 1, (40, 50, 60)),
        (palette(transparency=0), 0, (255, 255, 255)),
        (palette(transparency=0), 1, (40, 50, 60)),
        (filled("RGB", (9, 8, 7), transparency=(9, 8, 7)), 0, (255, 255, 255)),
        (filled("RGB", (1, 2, 3), "WEBP", lossless=True), 0, (1, 2, 3)),
        (filled("CMYK", (0, 0, 0, 0), "JPEG", quality=100), 0, (255, 255, 255)),
        (filled("CMYK", (0, 0, 0, 255), "JPEG", quality=100), 0, (0, 0, 0)),
    ],
    ids=without_bytes,
)
def test_every_mode_becomes_the_color_a_person_sees(
    data: bytes, x: int, expected: tuple[int, ...]
) -> None:
    assert rgb_at(data, x) == expected


def on_white(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float64: the color by its share, white by the rest."""
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float64)
    alpha = rgba[..., 3:] / 255
    return alpha * rgba[..., :3] + (1 - alpha) * 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "PA", "1"])
def test_a_picture_of_any_mode_is_its_colors_on_white(kind: str, mode: str) -> None:
    """All levels of transparency beside all colors of a picture."""
    image = picture(5, (32, 32), "RGB")
    if mode.endswith("A"):
        alpha = Image.fromarray(np.arange(1024, dtype=np.uint32).reshape(32, 32).astype(np.uint8))
        image.putalpha(alpha)
    if mode == "PA":
        image = image.quantize(16, method=Image.Quantize.FASTOCTREE)  # a palette with transparency
    elif mode != "RGBA":
        image = image.convert(mode)
    if kind == "WEBP":
        image = image.convert("RGBA" if mode.endswith("A") else "RGB")
    data = encoded(image, kind, lossless=True, exact=True)
    apart = decode(data).permute(1, 2, 0).numpy() - on_white(image)
    assert np.abs(apart).max() <= 0.51


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (3, 2), color) for color in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert rgb_at(data) == (255, 0, 0)


@pytest.mark.parametrize("size", [(1, 1), (17, 13), (64, 48)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"progressive": True, "quality": 30}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),  # simplejpeg cannot turn it into RGB: Pillow does in both installations
    ],
)
def test_the_fast_decoder_gives_pillows_pixels(
    size: tuple[int, int], mode: str, options: dict[str, Any]
) -> None:
    pytest.importorskip("simplejpeg")
    image = picture(1, size, mode)
    data = encoded(image, "JPEG", **options)
    assert torch.equal(decode(data), by_pillow(data))
    assert (module._decode_jpeg(data, module.MAX_PIXELS, None) is None) == (mode == "CMYK")


@pytest.mark.parametrize("size", [(64, 48), (61, 47), (9, 15)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2, "quality": 40}])
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_jpeg_is_decoded_smaller_to_the_same_pixels_by_either_decoder(
    size: tuple[int, int], options: dict[str, Any], shrink: int
) -> None:
    pytest.importorskip("simplejpeg")
    data = encoded(picture(1, size), "JPEG", **options)
    fast = decode(data, shrink=lambda height, width: shrink)
    assert fast.shape == (3, -(-size[1] // shrink), -(-size[0] // shrink))
    with mock.patch.object(module, "has_simplejpeg", return_value=False):
        assert torch.equal(decode(data, shrink=lambda height, width: shrink), fast)


def test_a_picture_of_several_frames_is_decoded_smaller_by_either_decoder() -> None:
    """MPO, as some cameras write: a JPEG behind another, of which the first counts."""
    first, second = picture(1, (64, 48)), picture(2, (64, 48))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    fast = decode(data, shrink=lambda height, width: 2)
    assert fast.shape == (3, 24, 32)
    with mock.patch.object(module, "has_simplejpeg", return_value=False):
        assert torch.equal(decode(data, shrink=lambda height, width: 2), fast)


def test_only_a_jpeg_is_decoded_smaller() -> None:
    for kind in ("PNG", "WEBP"):
        data = encoded(picture(1, (64, 48)), kind)
        assert torch.equal(decode(data, shrink=lambda height, width: 4), decode(data))


@pytest.mark.parametrize("is_fast", [True, False])
def test_shrinking_is_told_the_stored_size(is_fast: bool) -> None:
    """(height, width); and a shrink of 1 changes no pixel."""
    if is_fast:
        pytest.importorskip("simplejpeg")
    data = jpeg(1, (64, 48))
    shrink = mock.Mock(return_value=1)
    with mock.patch.object(module, "has_simplejpeg", return_value=is_fast):
        assert torch.equal(decode(data, shrink=shrink), decode(data))
    shrink.assert_called_once_with(48, 64)


@pytest.fixture
def without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_simplejpeg", lambda: False)


def by_pillow(data: bytes) -> torch.Tensor:
    """The stored pixels as Pillow turns them into RGB."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_without_simplejpeg_too(mode: str, without_simplejpeg: None) -> None:
    data = encoded(picture(1, (17, 13), mode), "JPEG")
    assert torch.equal(decode(data), by_pillow(data))


def test_a_ycck_jpeg_is_pillows_inverse_of_its_inks() -> None:
    """Marked by Adobe's transform 2: the same bytes are read as other colors than CMYK."""
    data = encoded(picture(1, (16, 16), "CMYK"), "JPEG", quality=95)
    assert data.count(b"Adobe\0") == 1
    place = data.index(b"Adobe\0") + 11
    ycck = data[:place] + b"\2" + data[place + 1 :]
    assert torch.equal(decode(ycck), by_pillow(ycck))
    assert not torch.equal(decode(ycck), decode(data))


def test_a_decoded_image_is_uint8_that_lies_in_memory_as_pixels() -> None:
    """Which torch's resizing kernel is fastest on."""
    for data in (jpeg(0), png(0)):
        pixels = decode(data)
        assert pixels.shape == (3, 16, 20)
        assert pixels.dtype == torch.uint8
        assert pixels.stride() == (1, 80, 4)


def test_pixels_of_a_pillow_image_are_its_array() -> None:
    image = picture(3)
    assert np.array_equal(pixels_of(image).permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>404</html>", "PNG, WEBP, .*; starts with b'<!DOCTYPE ht"),
        (filled("RGB", 0, "PPM"), "not readable as JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        (png(0)[:-40], "truncated"),
        (jpeg(0)[:-30], "truncated"),
        (jpeg(0)[:20], "starts with"),
        (png_claiming(17_000, 11_000), "17000 x 11000 pixels exceed max_image_pixels 178956970"),
        (png_claiming(60_000, 60_000), "exceed max_image_pixels"),
        (png_claiming(0, 7), "empty image|starts with"),
    ],
    ids=without_bytes,
)
def test_a_bad_image_has_a_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(BadImage, match=complaint):
        decode(data)


@pytest.mark.parametrize("data", [png(0), jpeg(0)], ids=["png", "jpeg"])
def test_the_limit_of_pixels_is_exact(data: bytes) -> None:
    assert decode(data, max_pixels=320).shape == (3, 16, 20)
    with pytest.raises(BadImage, match="20 x 16 pixels exceed max_image_pixels 319"):
        decode(data, max_pixels=319)


@pytest.mark.parametrize("data", [png(0), jpeg(0)], ids=["png", "jpeg"])
def test_the_limit_of_bytes_is_exact(data: bytes) -> None:
    assert decode(data, max_bytes=len(data)).shape == (3, 16, 20)
    with pytest.raises(BadImage, match=f"{len(data)} bytes exceed max_image_bytes {len(data) - 1}"):
        decode(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("fast", [True, False])
def test_pillows_own_bound_of_pixels_is_none_of_ours(
    monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool
) -> None:
    """It would refuse, without simplejpeg alone, what max_image_pixels was raised for."""
    data = encoded(picture(0), kind)
    if not fast:
        monkeypatch.setattr(module, "has_simplejpeg", lambda: False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(data).shape == (3, 16, 20)
    with pytest.raises(BadImage, match="20 x 16 pixels exceed max_image_pixels 319"):
        decode(data, max_pixels=319)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_strips_of_a_large_picture_are_those_of_the_whole(
    mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one strip is opaque and the next is not, and at a last strip of fewer rows."""
    image = picture(2, (20, 17))
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize((20, 17)).point(lambda v: min(255, 2 * v)))
    data = encoded(image.convert(mode if kind == "PNG" else image.mode), kind, lossless=True)
    whole = decode(data)
    monkeypatch.setattr(module, "STRIP_PIXELS", 20 * 3)
    assert torch.equal(decode(data), whole)
    monkeypatch.setattr(module, "STRIP_PIXELS", 1)  # a row at a time
    assert torch.equal(decode(data), whole)


def verdict(data: bytes) -> Any:
    try:
        return decode(data, max_pixels=10_000).numpy().tobytes()
    except BadImage as error:
        return str(error)


EXIF = Image.Exif()
EXIF[0x010E] = "a description"
JPEGS = [
    jpeg(0, (40, 32)),
    encoded(picture(1, (33, 31)), "JPEG", subsampling=0, exif=EXIF, comment=b"a comment"),
    encoded(picture(2, (31, 33)), "JPEG", progressive=True),
    encoded(picture(3, (30, 30), "L"), "JPEG", restart_marker_blocks=2),
    encoded(picture(4, (30, 30)), "JPEG", keep_rgb=True),
]


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    original=st.sampled_from(JPEGS),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    length=st.one_of(st.just(5000), st.integers(4, 2000)),
)
def test_both_installations_agree_about_damaged_jpegs(
    original: bytes,
    changes: list[tuple[int, int]],
    length: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same pixels, or the same complaint word for word; and again the next time."""
    pytest.importorskip("simplejpeg")
    data = bytearray(original[:length])
    for place, value in changes:
        data[place % len(data)] = value
    fast = verdict(bytes(data))
    assert verdict(bytes(data)) == fast
    with monkeypatch.context() as patch:
        patch.setattr(module, "has_simplejpeg", lambda: False)
        assert verdict(bytes(data)) == fast


ORIGINALS = [png(0), jpeg(0), palette(transparency=0)]
ORIGINALS += [encoded(picture(0), kind) for kind in ("WEBP", "GIF", "BMP", "TIFF", "AVIF")]
ORIGINALS.append(encoded(picture(0), "TIFF", compression="tiff_lzw"))


@settings(max_examples=300, deadline=None)
@given(
    original=st.sampled_from(ORIGINALS),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    length=st.integers(1, 2000),
)
def test_damaged_files_decode_or_are_bad_but_nothing_else(
    original: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(original[:length])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        pixels = decode(bytes(data), max_pixels=10_000)
    except BadImage:
        return
    assert pixels.shape[0] == 3
    assert pixels.dtype == torch.uint8
