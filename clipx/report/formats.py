"""Numbers, durations and pictures as the page shows them."""

from __future__ import annotations

import base64
import io
import math

from PIL import Image
from torch import Tensor


def exact_text(value: float) -> str:
    """Four digits, and thousands with a comma: 1,234 rather than 1.234e+03."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent_text(share: float) -> str:
    """12.3%, with a second decimal below one percent."""
    return f"{share:.2%}" if 0 < abs(share) < 0.01 else f"{share:.1%}"


def duration_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{seconds} s"


def picture_uri(image: Tensor, *, size: int = 96) -> str:
    """A picture as a data URI of a few kilobytes.

    image: (3, H, W) uint8; its longer side is reduced to at most `size` pixels
    """
    pixels = image.permute(1, 2, 0).contiguous()  # (H, W, 3)
    picture = Image.fromarray(pixels.numpy())
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # A page has hundreds of pictures. One of the demo is 0.7 KB as WebP, 1.5 KB as JPEG.
    picture.save(buffer, "WEBP", quality=80)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/webp;base64,{text}"
