"""Drawings -> PNG bytes, in this process or in several."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

import numpy as np
from PIL import Image

from clipx.demo.drawings import Drawing, stable_hash
from clipx.types import UserError

try:
    import resvg_py
except ImportError as error:
    raise UserError(
        "drawing the demo corpus needs resvg-py: pip install 'clipx-train[demo]'"
    ) from error

Renderer = Callable[[Sequence[Drawing]], Iterator[bytes | None]]
"""PNG bytes of each drawing in order, None where one is blank or cannot be rendered."""

# (background, ink) of drawings in one color: mostly black on white, so that colors mean little
_INKS = [("#ffffff", "#000000")] * 6 + [
    ("#ffffff", "#c0392b"),
    ("#ffffff", "#1f6fb2"),
    ("#ffffff", "#218c4a"),
    ("#f4f1e8", "#2c3e50"),
    ("#e8f0fa", "#17375e"),
    ("#101418", "#ffffff"),
    ("#1e3a5f", "#f5f7fa"),
    ("#fff4cc", "#5b3a00"),
]
_BACKGROUNDS = ["#ffffff"] * 5 + ["#f2f2f2", "#e6eef7", "#fdf3e1"]
_MIN_CONTRAST = 12  # levels of 255 that some channel of a picture must span
_CHUNK = 100  # drawings of a task, so that sending them costs little


def render(drawing: Drawing, px: int) -> bytes | None:
    """A square PNG of `px` pixels, None if it would be blank or cannot be rendered."""
    background = _BACKGROUNDS[stable_hash(drawing.key, len(_BACKGROUNDS))]
    try:
        if drawing.svg:
            ink = "#000000"
            if "currentColor" in drawing.svg:
                background, ink = _INKS[stable_hash(drawing.key, len(_INKS))]
            png = resvg_py.svg_to_bytes(
                svg_string=drawing.svg.replace("currentColor", ink),
                width=px,
                height=px,
                background=background,
                skip_system_fonts=True,  # letters must not depend on the machine
                dpi=96,  # resvg_py's default of 0 fails for all lengths in inches or points
            )
            image = Image.open(io.BytesIO(png)).convert("RGB")
        else:
            image = _render_file(drawing.path, px, background)
            png = png_bytes(image)
    except (ValueError, OSError, MemoryError):  # of resvg and Pillow, for a broken drawing
        return None
    pixels = np.asarray(image).reshape(-1, 3).astype(int)
    contrast = (pixels.max(0) - pixels.min(0)).max()
    return None if contrast < _MIN_CONTRAST else png


def _render_file(path: str, px: int, background: str) -> Image.Image:
    """Render the part with content: pages of clip art are often mostly empty."""
    png = resvg_py.svg_to_bytes(svg_path=path, width=2 * px, skip_system_fonts=True, dpi=96)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGB", (px, px), background)
    box = image.getchannel("A").getbbox()
    if box is not None:  # else nothing is drawn
        image = image.crop(box)
        # Rendered at twice the size above, since the crop may be small.
        image.thumbnail((px - 4, px - 4), Image.Resampling.LANCZOS)
        canvas.paste(image, ((px - image.width) // 2, (px - image.height) // 2), image)
    return canvas


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def renderer(px: int, workers: int) -> Iterator[Renderer]:
    """A renderer with `workers` processes. With one worker, this process does the work."""
    if workers <= 1:
        yield lambda drawings: (render(drawing, px) for drawing in drawings)
        return
    # Spawned, since the caller may have threads of torch or of a progress bar, which fork breaks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield lambda drawings: pool.map(partial(render, px=px), drawings, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise UserError(
                "a rendering process was killed, probably for want of memory; finished files are "
                "kept: run again, with fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
