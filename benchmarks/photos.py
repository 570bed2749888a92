"""Shards of photographs for the loader's benchmark, cut from the pictures that scikit-image and
scikit-learn bring along."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

# All color photographs of the two packages; hubble and retina are the ones larger than 640 pixels.
PICTURES = {
    "skimage": [
        f"data/{name}"
        for name in (
            "astronaut.png",
            "chelsea.png",
            "coffee.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        )
    ],
    "sklearn": [f"datasets/images/{name}" for name in ("china.jpg", "flower.jpg")],
}
SIDES, QUALITIES = (400, 640), (85, 95)
RECIPE = {"version": 1, "seed": 0, "samples": 3000, "shards": 6}


def build(folder: Path) -> Path:
    """Folder of shards, made once: 3000 JPEGs with captions of 5 to 20 words in 6 shards."""
    done = folder / "recipe.json"
    if done.exists() and json.loads(done.read_text()) == RECIPE:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = np.random.default_rng(RECIPE["seed"])
    pictures = {path.stem: Image.open(path).convert("RGB") for path in _paths()}
    each = RECIPE["samples"] // RECIPE["shards"]
    for shard in range(RECIPE["shards"]):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for sample in range(each):
                name = sorted(pictures)[int(generator.integers(len(pictures)))]
                key = f"{shard:05d}{sample:04d}"
                _add(tar, f"{key}.jpg", photo(pictures[name], generator))
                _add(tar, f"{key}.txt", caption(name, generator).encode())
    done.write_text(json.dumps(RECIPE))
    return folder


def photo(picture: Image.Image, generator: np.random.Generator) -> bytes:
    """JPEG of 400 to 640 pixels a side: a crop of at least half of each side of the picture."""
    width, height = (round(side * generator.uniform(0.5, 1.0)) for side in picture.size)
    left = int(generator.integers(picture.width - width + 1))
    top = int(generator.integers(picture.height - height + 1))
    to_width, to_height = generator.integers(SIDES[0], SIDES[1] + 1, 2).tolist()
    box = (left, top, left + width, top + height)
    out = picture.resize((to_width, to_height), Image.Resampling.LANCZOS, box=box)
    buffer = io.BytesIO()
    quality = int(generator.integers(QUALITIES[0], QUALITIES[1] + 1))
    out.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def caption(name: str, generator: np.random.Generator) -> str:
    words = (
        f"a photo of {name.replace('_', ' ')} in the light of a late afternoon seen from "
        "the other side of the old town with people and trees around it"
    ).split()
    return " ".join(words[: int(generator.integers(5, 21))])


def _paths() -> list[Path]:
    found = []
    for package, names in PICTURES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"{package} is missing: pip install 'clipx-train[bench]'")
        found += [Path(spec.origin).parent / name for name in names]
    return found


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
