"""The demo corpus: captioned drawings from package registries, rendered on the user's machine.

    <out>/train/00000.tar ...   key.png, key.txt (one caption), key.json (all captions, license)
    <out>/train/sizes.json      shard -> number of samples
    <out>/eval/<set>/           held-out test sets, see `demo_eval`
    <out>/recipe.json           what the folder is made from; another recipe is refused
    <out>/report.json           counts; written last, so it marks a finished corpus
    <out>/LICENSES.md, licenses.json

The bytes of shards and test sets depend on the recipe and the packages alone: not on the clock, the
user or the number of workers. What is there already is kept, so an interrupted build goes on.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipx.data.progress import note
from clipx.demo.demo_eval import COUNTS, eval_sets, missing_package
from clipx.demo.demo_train import build_shards, plan_training
from clipx.demo.licenses import credits, write_licenses
from clipx.demo.packages import (
    INSTALLED_GIB,
    VERSIONS,
    check_disk,
    ensure,
    missing,
    modules_of,
)
from clipx.demo.recipes import RECIPES, Recipe
from clipx.demo.render import Renderer, renderer
from clipx.demo.tars import write_text
from clipx.types import UserError

RECIPE_VERSION = 1
"""Raise it with every change of the code that changes the bytes of a corpus."""


def build(
    preset: str,
    out: Path,
    *,
    px: int = 64,
    shard_size: int = 5000,
    workers: int | None = None,
    npm: Path | None = None,
) -> dict[str, Any]:
    """The report of the corpus in `out`, which is built as far as it is not there already.

    px: side of the images; workers: rendering processes, one per core by default
    npm: folder that holds or shall hold `node_modules`, `<out>/npm` by default
    """
    if preset not in RECIPES:
        raise UserError(f"preset {preset!r} is unknown; choose one of {', '.join(RECIPES)}")
    for name, value, least in (("px", px, 16), ("shard_size", shard_size, 1)):
        if value < least:
            raise UserError(f"{name} {value} is too small; it must be at least {least}")
    recipe = RECIPES[preset]
    return build_recipe(recipe, out, px=px, shard_size=shard_size, workers=workers, npm=npm)


def build_recipe(
    recipe: Recipe, out: Path, *, px: int, shard_size: int, workers: int | None, npm: Path | None
) -> dict[str, Any]:
    """`build` for any recipe."""
    started = time.monotonic()
    identity = _identity(recipe, px, shard_size)
    _check_identity(out, identity)
    if report := _finished_report(out, recipe):
        return report
    prefix = npm or out / "npm"
    to_install_gib = INSTALLED_GIB if missing(modules_of(prefix)) else 0
    check_disk(out, recipe.corpus_gib + to_install_gib)
    modules = ensure(prefix)
    for folder in ("train", "eval"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_text(out / "recipe.json", json.dumps(identity, indent=1) + "\n")
    plan = plan_training(recipe, modules)
    with renderer(px, workers or _num_cores()) as render:
        train = build_shards(out / "train", plan.drawings, shard_size, render)
        sets, skipped = _build_eval(out / "eval", recipe, modules, render)
    test = sum((Counter(counts["sources"]) for counts in sets.values()), Counter())
    write_licenses(out, credits(modules, train, test))
    report = {
        "preset": recipe.preset,
        "px": px,
        "pairs": train.total(),
        "blank": len(plan.drawings) - train.total(),
        "drawn_twice": plan.twice,
        "copies_of_test_drawings": plan.copies,
        "by_source": dict(train.most_common()),
        "eval": sets,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_text(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _num_cores() -> int:
    """Cores that this process may use, fewer than the machine has under Slurm or in a container."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _identity(recipe: Recipe, px: int, shard_size: int) -> dict[str, Any]:
    """All that the bytes of the training shards depend on."""
    irrelevant = ("openclipart", "fashion_mnist", "corpus_gib")
    facts = {key: value for key, value in asdict(recipe).items() if key not in irrelevant}
    facts |= {
        "clipart": recipe.trains_on_clipart,
        "px": px,
        "shard_size": shard_size,
        "recipe_version": RECIPE_VERSION,
        "packages": VERSIONS,
        "resvg-py": importlib.metadata.version("resvg-py"),
        "pillow": importlib.metadata.version("pillow"),
    }
    return json.loads(json.dumps(facts))  # tuples become lists, as they are when read back


def _check_identity(out: Path, identity: dict[str, Any]) -> None:
    """Raise where `out` holds something else."""
    remedy = f"choose another folder, or delete {out}/train, {out}/eval and {out}/recipe.json"
    try:
        found = json.loads((out / "recipe.json").read_text("utf-8"))
    except FileNotFoundError:
        if any((out / "train").glob("*.tar")):
            raise UserError(f"{out}/train holds shards of unknown origin; {remedy}") from None
        return
    except ValueError:
        raise UserError(f"{out}/recipe.json is not JSON; {remedy}") from None
    changes = [
        f"{name} {_short(found.get(name))} there, {_short(identity[name])} asked for"
        for name in identity
        if found.get(name) != identity[name]
    ]
    if changes:
        raise UserError(f"{out} holds another demo corpus ({'; '.join(changes[:2])}); {remedy}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finished_report(out: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The report of a corpus that needs no work; None if something is missing or newly possible."""
    try:
        report = json.loads((out / "report.json").read_text("utf-8"))
        sizes = json.loads((out / "train" / "sizes.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    needed = [out / "train" / shard for shard in sizes]
    needed += [out / "eval" / name for name in report["eval"]]
    if not all(path.exists() for path in needed):
        return None
    return report if all(missing_package(name, recipe) for name in report["skipped"]) else None


def _build_eval(
    folder: Path, recipe: Recipe, modules: Path, render: Renderer
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the test sets that are not there. Returns name -> counts, and name -> why skipped."""
    counts, skipped = {}, {}
    for name, make in eval_sets(recipe, modules, render).items():
        if not (folder / name).exists():
            if reason := missing_package(name, recipe):
                skipped[name] = reason
                note(f"test set {name} skipped: {reason}")
                continue
            make().write(folder / name)
        counts[name] = json.loads((folder / name / COUNTS).read_text("utf-8"))
        note(f"test set {name}: {counts[name]['images']:,} images")
    return counts, skipped
