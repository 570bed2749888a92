"""The command line.

Exit codes:
  0    success
  1    a fault, or bad data found by `clipx data index` and `clipx data verify`
  2    a mistake of the user, with a message and no traceback
  75   training has stopped early with a checkpoint (0 under torchrun and accelerate, which would
       restart it), or `clipx runs --check` found a run that is not finished
  130  interrupted
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clipx import (
    __version__,
    cli_collection,
    cli_data,
    cli_dedup,
    cli_diff,
    cli_eval,
    cli_import,
    cli_index,
    cli_mine,
    cli_search,
    cli_serve,
)
from clipx.distributed.launcher import is_reporting_rank
from clipx.open_clip_flags import explain_flags
from clipx.types import PeerError, RankError, Stopped, UserError


def run() -> None:
    """The program."""
    code: int | str | None = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001  printed as by the interpreter
        sys.excepthook(type(error), error, error.__traceback__)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    # One of several ranks skips the end of the interpreter. There, threads of the process group
    # wait for peers, or abort the process when they take the GIL after their last collective
    # (https://github.com/pytorch/pytorch/pull/179291), and a scheduler would see that exit code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Raises SystemExit with the exit code."""
    try:
        arguments = parse(argv)
        arguments.run(arguments)
    except UserError as error:
        # If all ranks have the same error, one of them prints it.
        if isinstance(error, RankError) or is_reporting_rank(os.environ):
            print(f"clipx: {error}", file=sys.stderr, flush=True)
        else:
            # A launcher ends all ranks when the first exits; the rank that prints must be first.
            time.sleep(5)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"clipx: {error}; free some space and run the same command again", file=sys.stderr)
        sys.exit(2)
    except PeerError as error:
        print(f"clipx: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("clipx: interrupted", file=sys.stderr)
        sys.exit(130)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments. `key=value`, and the texts of a search, may also follow options, which
    argparse alone refuses. Raises UserError for flags of open_clip."""
    words = list(sys.argv[1:] if argv is None else argv)
    refuse_flags(words)
    top = parser()
    arguments, rest = top.parse_known_args(words)
    if "overrides" in arguments and all("=" in text and text[0] != "-" for text in rest):
        arguments.overrides += rest
    elif "texts" in arguments and not any(text.startswith("--") for text in rest):
        arguments.texts += rest
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def refuse_flags(words: Sequence[str]) -> None:
    """Raise UserError if `clipx train` or `clipx config show` gets flags, as open_clip_train has
    them, with the setting that each of them means."""
    is_of_config = words[:1] == ["train"] or words[:2] == ["config", "show"]
    if not is_of_config or "-h" in words or "--help" in words:
        return
    lines = explain_flags(words)
    if not lines:
        return
    if not any(word.endswith((".yaml", ".yml")) for word in words):
        lines.append("a YAML file comes first, such as configs/run/demo_tiny.yaml")
    raise UserError("\n  ".join(["settings of a run are key=value, not flags:", *lines]))


class Version(argparse.Action):
    """Print the versions that a report of a fault needs. Imports no torch."""

    def __call__(self, *_: object) -> None:
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"clipx {__version__} (Python {python}, torch {installed('torch')})")
        sys.exit(0)


def installed(package: str) -> str:
    """The version of a package, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="clipx", description="Exact, resumable CLIP pretraining.")
    top.add_argument("--version", action=Version, nargs=0, help="print the versions and exit")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train, or resume a stopped run")
    train.add_argument("config", type=Path, help="YAML file, e.g. configs/run/demo_tiny.yaml")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. run_dir=runs/a optim.lr=1e-3"
    )
    train.set_defaults(run=_train)

    cli_eval.add_verbs(verbs)
    cli_import.add_verbs(verbs)
    cli_data.add_verbs(verbs)
    cli_mine.add_verbs(verbs)
    cli_search.add_verbs(verbs)
    cli_index.add_verbs(verbs)
    cli_dedup.add_verbs(verbs)
    cli_collection.add_verbs(verbs)
    cli_serve.add_verbs(verbs)
    cli_diff.add_verbs(verbs)

    runs = verbs.add_parser("runs", help="runs with step, loss, last checkpoint; alive or not")
    text = "folders of runs, or YAML files, perhaps with key=value, for the runs that they name"
    runs.add_argument("targets", nargs="*", metavar="RUN", help=f"{text} (default: runs)")
    text = "print step/total of one run; exit with 0 when it is finished, 75 when not"
    runs.add_argument("--check", action="store_true", help=text)
    runs.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    runs.set_defaults(run=_runs)

    config = verbs.add_parser("config", help="configs").add_subparsers(
        required=True, metavar="WHAT"
    )
    show = config.add_parser("show", help="print a config with all layers and defaults resolved")
    show.add_argument("config", type=Path)
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.set_defaults(run=_config_show)
    return top


def _train(arguments: argparse.Namespace) -> None:
    from clipx.training.interruption import EXIT_STOPPED, Stop

    # Importing torch takes seconds, in which a scheduler may already stop the job.
    with Stop().listening() as stop:
        from clipx.training.run_config import load_config

        # First of all, since a mistake needs no torch to be found.
        config = load_config(arguments.config, arguments.overrides)

        from clipx.distributed.runtime import restarts_failures
        from clipx.training.trainer import train

        try:
            train(config, stop)
        except Stopped as early:
            if is_reporting_rank(os.environ):
                print(f"clipx: {early}; the same command resumes it", file=sys.stderr, flush=True)
            sys.exit(0 if restarts_failures() else EXIT_STOPPED)


def _runs(arguments: argparse.Namespace) -> None:
    from clipx.training import runs

    targets = []
    overrides = []
    for text in arguments.targets:
        (overrides if "=" in text else targets).append(text)
    targets = targets or ["runs"]
    if arguments.check:
        sys.exit(runs.check(targets, overrides))
    runs.show(targets, overrides, as_json=arguments.json)


def _config_show(arguments: argparse.Namespace) -> None:
    from clipx.config import to_yaml
    from clipx.training.run_config import load_config

    print(to_yaml(load_config(arguments.config, arguments.overrides)), end="")
