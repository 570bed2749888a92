"""The training shards of the demo corpus: selection and order of the drawings, and the files."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipx.data.tar_index import load_index
from clipx.demo.clipart import clipart_drawings, is_held_out
from clipx.demo.drawings import Drawing, geometry, load_set, stable_hash
from clipx.demo.emoji import emoji_drawings, flag_drawings
from clipx.demo.icons import icon_drawings
from clipx.demo.recipes import Recipe
from clipx.demo.render import Renderer
from clipx.demo.tars import member_key, write_tar
from clipx.files import write_whole
from clipx.progress import progress


def plan_training(recipe: Recipe, modules: Path) -> tuple[list[Drawing], int, int]:
    """Each training drawing once and no copy of a held-out one, in the order of the shards; the
    number of drawings left out since an earlier set has the same markup; and of those left out
    since they have the paths of a held-out drawing."""
    candidates = list(emoji_drawings(modules, recipe.emoji_sets))
    candidates += flag_drawings(modules, recipe.flag_sets)
    candidates += icon_drawings(modules, recipe.icon_sets, recipe.styles_per_icon)

    # The geometry of all drawings that are held out, whether a test uses them or not.
    held_out = set()
    for prefix in (recipe.test_emoji, recipe.test_flags, recipe.test_icons):
        for icon in load_set(modules, prefix)["icons"].values():
            held_out.add(geometry(icon["body"]))
    if recipe.trains_on_clipart:
        for drawing in clipart_drawings(recipe.openclipart):
            if is_held_out(drawing):
                held_out.add(geometry(drawing.markup))
            else:
                candidates.append(drawing)
    held_out.discard("")  # drawings without paths, such as circles, are no copies of one another

    drawings: dict[bytes, Drawing] = {}
    duplicates = 0
    copies = 0
    for drawing in candidates:
        markup = drawing.markup
        digest = hashlib.sha1(markup.encode()).digest()  # sets copy drawings from one another
        if digest in drawings:
            duplicates += 1
        elif geometry(markup) in held_out:
            copies += 1
        else:
            drawings[digest] = drawing
    # A hash instead of a seed: adding a set does not move the drawings of the others.
    shuffled = sorted(drawings.values(), key=lambda d: hashlib.sha1(d.key.encode()).digest())
    return shuffled, duplicates, copies


def build_shards(
    folder: Path, drawings: Sequence[Drawing], shard_size: int, render: Renderer
) -> Counter[str]:
    """Write the missing shards and `sizes.json`. Returns the number of samples of each source."""
    parts: dict[Path, Sequence[Drawing]] = {}
    for start in range(0, len(drawings), shard_size):
        path = folder / f"{len(parts):05d}.tar"
        parts[path] = drawings[start : start + shard_size]
    missing = [path for path in parts if not path.exists()]
    with progress("rendering drawings", sum(len(parts[path]) for path in missing)) as advance:
        for path in missing:
            write_tar(path, _members(parts[path], render, advance))
            load_index(path)  # writes the index beside the shard
    sources: Counter[str] = Counter()
    sizes = {}
    for path in parts:
        # Counted in the file, which may be from an earlier build.
        counts: Counter[str] = Counter()
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                # Each sample has one .json, which names its source.
                if info.name.endswith(".json") and (member := tar.extractfile(info)):
                    counts[json.load(member)["source"]] += 1
        sizes[path.name] = counts.total()
        sources += counts
    write_whole(folder / "sizes.json", json.dumps(sizes, indent=1) + "\n")
    return sources


def _members(
    drawings: Sequence[Drawing], render: Renderer, advance: Callable[[], None]
) -> Iterator[tuple[str, bytes]]:
    """The tar members of all drawings that are not blank."""
    for drawing, png in zip(drawings, render(drawings), strict=True):
        advance()
        if png is None:  # blank, or not to be rendered
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
