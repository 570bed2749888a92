"""The verb `clipx diff`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.training.run_diff import RunDiff


def add_verbs(verbs: Any) -> None:
    diff = verbs.add_parser("diff", help="where two runs part, and the likely cause")
    text = "folder of a run, or the YAML file that names it"
    diff.add_argument("runs", nargs=2, metavar="RUN", help=text)
    diff.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    diff.set_defaults(run=_diff)


def _diff(arguments: argparse.Namespace) -> None:
    from clipx import strict_json
    from clipx.training.diff_causes import likely_causes
    from clipx.training.run_diff import compare, read_logs
    from clipx.training.runs import run_dir_of

    folders: list[Path] = [run_dir_of(target, []) for target in arguments.runs]
    found = compare(*map(read_logs, folders))
    causes = likely_causes(found)
    if arguments.json:
        record = {
            "runs": list(map(str, folders)),
            "settings": found.settings,
            "harmless_settings": found.harmless,
            "versions": found.versions,
            "corpus": found.corpus,
            "common_steps": found.num_common,
            "partings": [asdict(parting) for parting in found.partings],
            "causes": causes,
        }
        print(strict_json.dumps(record))
        return
    for letter, folder in zip("AB", folders, strict=True):
        print(f"{letter}: {folder}")
    _print(found)
    for cause in causes:
        print(f"likely: {cause}")


def _print(found: RunDiff) -> None:
    from clipx.cli_data import print_table
    from clipx.config_diff import short
    from clipx.training.run_diff import SERIES

    for title, values in (("settings", found.settings), ("versions", found.versions)):
        rows = [[name, short(left), short(right)] for name, (left, right) in values.items()]
        if rows:
            print_table([title, "A", "B"], rows)
        else:
            print(f"{title}: equal")
    if found.harmless:
        print(f"without effect on the numbers: {', '.join(found.harmless)}")
    print(f"corpus: {found.corpus or 'equal'}")
    if found.last_common is not None:
        print(f"{found.num_common:,} steps are in both logs, the last {found.last_common:,}")
    rows = []
    for parting in found.partings:
        last = "-" if parting.last_equal is None else f"{parting.last_equal:,}"
        relative = "-" if parting.relative is None else f"{parting.relative:.1g}"
        values = map(short, parting.values)
        rows.append([SERIES[parting.series], last, f"{parting.step:,}", *values, relative])
    if rows:
        print_table(["", "equal until", "parts at", "A", "B", "relative"], rows)
