"""The training shards of the demo corpus: which drawings go in, in which order, and the writing."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.data.progress import progress
from clipx.demo.clipart import clipart_drawings, is_held_out
from clipx.demo.drawings import (
    Drawing,
    emoji_drawings,
    flag_drawings,
    geometry,
    load_set,
    stable_hash,
)
from clipx.demo.icons import icon_drawings
from clipx.demo.recipes import Recipe
from clipx.demo.render import Renderer
from clipx.demo.tars import member_key, write_tar, write_text


@dataclass(frozen=True)
class Plan:
    """What to train on, in the order of the shards, and how many drawings were left out."""

    drawings: list[Drawing]
    twice: int
    """Drawings that an earlier set has too, to the letter."""
    copies: int
    """Drawings with the very paths of a held-out one."""


def plan_training(recipe: Recipe, modules: Path) -> Plan:
    """Every training drawing once and no copy of a held-out one, in the order of a stable hash."""
    held_out = held_out_geometry(recipe, modules)
    drawings: dict[bytes, Drawing] = {}
    twice = copies = 0
    for drawing in _training_drawings(recipe, modules):
        markup = drawing.markup
        picture = hashlib.sha1(markup.encode()).digest()
        if picture in drawings:
            twice += 1
        elif geometry(markup) in held_out:
            copies += 1
        else:
            drawings[picture] = drawing
    shuffled = sorted(drawings.values(), key=lambda d: hashlib.sha1(d.key.encode()).digest())
    return Plan(shuffled, twice, copies)


def _training_drawings(recipe: Recipe, modules: Path) -> Iterator[Drawing]:
    yield from emoji_drawings(modules, recipe.emoji_sets)
    yield from flag_drawings(modules, recipe.flag_sets)
    yield from icon_drawings(modules, recipe.icon_sets, recipe.styles_per_icon)
    if recipe.trains_on_clipart:
        clipart = clipart_drawings(recipe.openclipart)
        yield from (drawing for drawing in clipart if not is_held_out(drawing))


def held_out_geometry(recipe: Recipe, modules: Path) -> set[str]:
    """The geometry of every drawing of the held-out sets, whether a test uses it or not."""
    found = set()
    for prefix in recipe.test_sets:
        found |= {geometry(icon["body"]) for icon in load_set(modules, prefix)["icons"].values()}
    if recipe.trains_on_clipart:
        clipart = clipart_drawings(recipe.openclipart)
        found |= {geometry(drawing.markup) for drawing in clipart if is_held_out(drawing)}
    return found - {""}


def build_shards(
    folder: Path, drawings: Sequence[Drawing], shard_size: int, render: Renderer
) -> Counter[str]:
    """Write the shards that are not there, and `sizes.json`. Returns the samples of each source."""
    from clipx.data.tar_index import load_index

    plan = {
        folder / f"{number:05d}.tar": drawings[start : start + shard_size]
        for number, start in enumerate(range(0, len(drawings), shard_size))
    }
    todo = {path: part for path, part in plan.items() if not path.exists()}
    with progress("rendering drawings", sum(map(len, todo.values()))) as advance:
        for path, part in todo.items():
            write_tar(path, _members(part, render, advance))
            load_index(path)  # leaves the index beside the shard
    by_shard = {path.name: _count_sources(path) for path in plan}
    sizes = {name: counts.total() for name, counts in by_shard.items()}
    write_text(folder / "sizes.json", json.dumps(sizes, indent=1) + "\n")
    return sum(by_shard.values(), Counter())


def _members(
    drawings: Sequence[Drawing], render: Renderer, advance: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """The tar members of all drawings that are not blank."""
    for drawing, png in zip(drawings, render(drawings), strict=True):
        advance()
        if png is None:
            continue
        key = member_key(drawing.key)
        caption = drawing.captions[stable_hash(f"caption {drawing.key}", len(drawing.captions))]
        facts = {
            "captions": drawing.captions,
            "label": drawing.label,
            "kind": drawing.kind,
            "source": drawing.source,
            "license": drawing.license,
        }
        yield f"{key}.png", png
        yield f"{key}.txt", caption.encode()
        yield f"{key}.json", json.dumps(facts, ensure_ascii=False).encode()


def _count_sources(shard: Path) -> Counter[str]:
    """Samples of each source in a shard, read from the shard."""
    counts: Counter[str] = Counter()
    with tarfile.open(shard, "r:") as tar:
        for info in tar:
            if info.name.endswith(".json") and (member := tar.extractfile(info)):
                counts[json.load(member)["source"]] += 1
    return counts
