"""The verb `clipx import`. It imports what it needs, so that `clipx --help` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_verbs(verbs: Any) -> None:
    text = "go on with a run of another program"
    programs = verbs.add_parser("import", help=text).add_subparsers(
        required=True, metavar="PROGRAM"
    )
    open_clip = programs.add_parser(
        "open_clip", help="a config, and a checkpoint to train on from, of open_clip_train 3.3.0"
    )
    text = "params.txt in the run's folder, logs/NAME"
    open_clip.add_argument("--params", type=Path, required=True, metavar="FILE", help=text)
    text = "epoch_N.pt in logs/NAME/checkpoints, with weights and optimizer state"
    open_clip.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    text = "the new run folder (default: runs/NAME)"
    open_clip.add_argument("--out", type=Path, metavar="DIR", help=text)
    open_clip.set_defaults(run=_open_clip)


def _open_clip(arguments: argparse.Namespace) -> None:
    from clipx.migrate.run import import_run

    for line in import_run(arguments.params, arguments.checkpoint, arguments.out):
        print(line)
