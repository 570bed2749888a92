"""Numbers, durations and pictures as the page shows them."""

from __future__ import annotations

import base64
import io
import math

import torch
from PIL import Image

from clipx.report.formats import duration_text, exact_text, percent_text, picture_uri


def test_numbers_and_durations() -> None:
    values = {
        1234.0: "1,234",
        0.12345: "0.1235",
        1234.5: "1,234",
        1e-7: "1e-07",
        12.0: "12",
        math.nan: "nan",
    }
    assert {value: exact_text(value) for value in values} == values
    assert [percent_text(share) for share in (0.123, 0.0004, 0.0)] == ["12.3%", "0.04%", "0.0%"]
    assert [duration_text(seconds) for seconds in (59.6, 61, 7384)] == [
        "1 min 0 s",
        "1 min 1 s",
        "2 h 3 min",
    ]


def test_a_picture_keeps_its_proportions_and_colors() -> None:
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[0] = 200
    uri = picture_uri(image, size=50)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as read:
        assert (read.format, read.size) == ("WEBP", (50, 25))
        red, green, blue = read.convert("RGB").getpixel((25, 12))  # type: ignore[misc]
    assert abs(red - 200) < 6
    assert max(green, blue) < 6
