"""The demo corpus: captioned drawings from package registries, rendered on the user's machine.

    <out>/train/00000.tar ...   key.png, key.txt (one caption), key.json (all captions, license)
    <out>/train/sizes.json      shard -> number of samples
    <out>/eval/<set>/           held-out test sets, see `test_sets`
    <out>/recipe.json           the settings of the build; a folder with other settings is refused
    <out>/report.json           counts; written last, so it marks a finished corpus
    <out>/LICENSES.md, licenses.json

The bytes of shards and test sets depend on the recipe and the packages alone: not on the clock, the
user or the number of workers. Finished files are kept, so an interrupted build can be repeated.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipx.config_diff import short
from clipx.cores import usable_cores
from clipx.demo.eval_set import COUNTS
from clipx.demo.licenses import write_licenses
from clipx.demo.packages import (
    INSTALLED_GIB,
    VERSIONS,
    check_disk,
    ensure_packages,
    missing_packages,
    modules_of,
)
from clipx.demo.recipes import RECIPES, Recipe
from clipx.demo.render import Renderer, renderer
from clipx.demo.test_sets import EVAL_SETS, build_set, is_built, missing_package
from clipx.demo.training_set import build_shards, plan_training
from clipx.files import write_whole
from clipx.progress import activity, note
from clipx.types import UserError

RECIPE_VERSION = 1
"""To be raised with each change of the code that changes the bytes of a corpus."""


def build(preset: str, out: Path, *, workers: int | None = None) -> dict[str, Any]:
    """Build a corpus of 64 px in `out`, as far as it is not there already. Returns its report.

    workers: rendering processes, by default one per core
    """
    if preset not in RECIPES:
        raise UserError(f"preset {preset!r} is unknown; choose one of {', '.join(RECIPES)}")
    workers = workers or usable_cores()
    recipe = RECIPES[preset]
    return build_recipe(recipe, out, px=64, shard_size=5000, workers=workers, npm=out / "npm")


def build_recipe(
    recipe: Recipe, out: Path, *, px: int, shard_size: int, workers: int, npm: Path
) -> dict[str, Any]:
    """px: side of the images; npm: folder with `node_modules`, installed where it is missing"""
    started = time.monotonic()
    identity = _check_identity(out, recipe, px, shard_size)
    if report := _finished_report(out, recipe):
        note(f"{out} is complete: {_summary(report)}")
        return report
    # All checks come before the first file is written.
    to_install_gib = INSTALLED_GIB if missing_packages(modules_of(npm)) else 0
    check_disk(out, recipe.corpus_gib + to_install_gib)
    modules = ensure_packages(npm)
    for folder in ("train", "eval"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    # The first of all files, so that an unfinished corpus is known by its recipe, too.
    write_whole(out / "recipe.json", json.dumps(identity, indent=1) + "\n")
    with activity("choosing drawings"):
        drawings, duplicates, copies = plan_training(recipe, modules)
    with renderer(px, workers) as render:
        train = build_shards(out / "train", drawings, shard_size, render)
        sets, skipped = _build_eval(out / "eval", recipe, modules, render)
    test: Counter[str] = Counter()  # images of each source
    for counts in sets.values():
        test.update(counts["sources"])
    write_licenses(out, modules, train, test)
    report = {
        "preset": recipe.preset,
        "px": px,
        "pairs": train.total(),
        "blank": len(drawings) - train.total(),
        "drawn_twice": duplicates,
        "copies_of_test_drawings": copies,
        "by_source": dict(train.most_common()),
        "eval": sets,
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    note(f"{out}: {_summary(report)}")
    return report


def _summary(report: dict[str, Any]) -> str:
    return f"{report['pairs']:,} training pairs and {len(report['eval'])} test sets"


def _check_identity(out: Path, recipe: Recipe, px: int, shard_size: int) -> dict[str, Any]:
    """Returns everything that the bytes of the training shards depend on. Refuses a folder that
    contains another corpus."""
    identity = asdict(recipe)
    for irrelevant in ("openclipart", "fashion_mnist", "corpus_gib"):
        del identity[irrelevant]  # paths and sizes of this machine
    identity |= {
        "clipart": recipe.trains_on_clipart,
        "px": px,
        "shard_size": shard_size,
        "recipe_version": RECIPE_VERSION,
        "packages": VERSIONS,
        "resvg-py": importlib.metadata.version("resvg-py"),
        "pillow": importlib.metadata.version("pillow"),
    }
    identity = json.loads(json.dumps(identity))  # tuples become lists, to compare with a file's

    remedy = f"choose another folder, or delete {out}/train, {out}/eval and {out}/recipe.json"
    try:
        existing = json.loads((out / "recipe.json").read_text("utf-8"))
    except FileNotFoundError:
        if any((out / "train").glob("*.tar")):
            raise UserError(f"{out}/train holds shards of unknown origin; {remedy}") from None
        return identity
    except ValueError:
        raise UserError(f"{out}/recipe.json is not JSON; {remedy}") from None
    changes = []
    for name, value in identity.items():
        if existing.get(name) != value:
            changes.append(f"{name} {short(existing.get(name))} there, {short(value)} requested")
    if changes:
        raise UserError(f"{out} holds another demo corpus ({'; '.join(changes[:2])}); {remedy}")
    return identity


def _finished_report(out: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The report of a corpus that needs no work; None if something is missing or newly possible."""
    try:
        report = json.loads((out / "report.json").read_text("utf-8"))
        sizes = json.loads((out / "train" / "sizes.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    needed = [out / "train" / shard for shard in sizes]
    if not all(path.exists() for path in needed):
        return None
    # An older version made fewer sets, or without a training split.
    wanted = {*EVAL_SETS, *report["eval"]} - {*report["skipped"]}
    if not all(is_built(out / "eval", name) for name in wanted):
        return None
    # A package that was missing may have been installed since, so that its test set can be built.
    if not all(missing_package(name, recipe) for name in report["skipped"]):
        return None
    return report


def _build_eval(
    folder: Path, recipe: Recipe, modules: Path, render: Renderer
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the missing test sets. Returns name -> counts, and name -> reason to skip it."""
    counts = {}
    skipped = {}
    for name in EVAL_SETS:
        if not is_built(folder, name):
            if reason := missing_package(name, recipe):
                skipped[name] = reason
                note(f"test set {name} skipped: {reason}")
                continue
            shutil.rmtree(folder / name, ignore_errors=True)  # of an older version
            with activity(f"rendering test set {name}"):
                build_set(name, recipe, modules, render).write(folder / name)
        counts[name] = json.loads((folder / name / COUNTS).read_text("utf-8"))
        note(f"test set {name}: {counts[name]['images']:,} images")
    return counts, skipped
