"""The verbs `clipx eval`, `compare` and `report`. Each imports what it needs, so `clipx --help` is
quick."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from clipx import strict_json
from clipx.models.hub import PREFIXES
from clipx.types import PrecisionKind, UserError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_SEEN = 10_000
"""Files that are looked at to find out whether a folder is a test set."""


def add_verbs(verbs: Any) -> None:
    evaluate = verbs.add_parser("eval", help="measure a model on test sets, with intervals")
    evaluate.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, checkpoints/step_* folder, open_clip:ARCHITECTURE/TAG, "
        "local-dir:FOLDER, hf-hub:ORGANIZATION/REPOSITORY, or a transformers CLIPModel or "
        "SiglipModel folder",
    )
    text = "of each --set (templates=openai), or evaluators.NAME.key=value of a suite or a run"
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    evaluate.add_argument(
        "--set",
        type=Path,
        action="append",
        metavar="DIR",
        dest="sets",
        default=[],
        help="test set; may be repeated (default: the run's evaluators)",
    )
    evaluate.add_argument(
        "--suite", type=Path, metavar="YAML", help="e.g. configs/evaluators/imagenet.yaml"
    )
    kinds = get_args(PrecisionKind)
    evaluate.add_argument("--precision", choices=kinds, default="auto", help="of the towers")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="results, also for each sample")
    evaluate.add_argument(
        "--json", action="store_true", help="one JSON object a metric on stdout, not a table"
    )
    evaluate.add_argument(
        "--picture", type=Path, metavar="PNG", help="write test images with the model's guesses"
    )
    evaluate.add_argument(
        "--raw", action="store_true", help="the weights, where a run also has averages of them"
    )
    evaluate.set_defaults(run=_eval)

    compare = verbs.add_parser("compare", help="do two evaluations differ by more than chance?")
    compare.add_argument("first", type=Path, metavar="A", help="folder of `clipx eval --out`")
    compare.add_argument("second", type=Path, metavar="B", help="another, of the same test sets")
    compare.add_argument("--json", action="store_true", help="one JSON object a metric on stdout")
    compare.set_defaults(run=_compare)

    report = verbs.add_parser("report", help="one HTML file about a run, its model and its data")
    report.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    report.set_defaults(run=_report)


def _eval(arguments: argparse.Namespace) -> None:
    check_paths(arguments.model, arguments.sets)

    from clipx import eval_verb

    eval_verb.run(arguments)


def check_paths(model: str, sets: Sequence[Path]) -> None:
    """Raise UserError for a model or a test set that does not exist. Imports no torch."""
    for folder in sets:
        if not folder.is_dir():
            raise UserError(
                f"test set {folder} does not exist{_similar(folder)}; the demo's are made by "
                "`clipx data demo`"
            )
        if not _has_test_images(folder):
            raise UserError(
                f"{folder} is no test set: neither it nor its folders contain tars, and there are "
                "no folders with pictures. The layouts are in docs/evaluation.md"
            )
    path = Path(model)
    if (path / "classnames.txt").exists():
        raise UserError(f"{model} is a test set, no model; write clipx eval MODEL --set {model}")
    if not path.exists() and not model.startswith(PREFIXES):
        raise UserError(
            f"model {model} does not exist{_similar(path)}; give a run folder, a checkpoint, or a "
            f"name that begins with {', '.join(PREFIXES)}"
        )


def _has_test_images(folder: Path) -> bool:
    """Whether a folder may be a test set: a tar in it or below it, or a picture below it."""
    num_seen = 0
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            is_picture = name.lower().endswith(PICTURES) and Path(place) != folder
            if name.endswith(".tar") or is_picture:
                return True
        num_seen += len(names)
        if num_seen > MAX_SEEN:
            return True  # which the evaluator then decides
    return False


def _similar(path: Path) -> str:
    """A folder beside `path` with almost its name, for a message."""
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir()]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _compare(arguments: argparse.Namespace) -> None:
    from clipx import comparison, eval_verb

    differences = comparison.compare(arguments.first, arguments.second)
    # As for `clipx eval`: one object a line, so that jq and grep can select metrics.
    if arguments.json:
        for difference in differences:
            print(strict_json.dumps(vars(difference)))
    else:
        eval_verb.print_comparison(differences)


def _report(arguments: argparse.Namespace) -> None:
    from clipx.report.write import write_report

    print(write_report(arguments.folder, arguments.out))
