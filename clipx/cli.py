"""The command line. Exit codes: 0 done, 2 the user's mistake (a message, no traceback), 1 a fault,
130 interrupted."""

from __future__ import annotations

import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clipx.types import RankError, UserError


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        if _must_say(error):
            print(f"clipx: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(5)  # a launcher ends all ranks when the first leaves: let the one speak
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"clipx: {error}; make room and start the same command again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("clipx: interrupted", file=sys.stderr)
        sys.exit(130)


def _must_say(error: UserError) -> bool:
    """One copy of what all ranks have met, not one a rank."""
    if isinstance(error, RankError) or "torch" not in sys.modules:
        return True
    from clipx.distributed.runtime import speaks

    return speaks()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="clipx", description="Exact, resumable CLIP pretraining.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("config", type=Path, help="YAML file, e.g. configs/run/demo_tiny.yaml")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. run_dir=runs/a optim.lr=1e-3"
    )
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser(
        "eval", help="zero-shot classification and retrieval of a run or checkpoint"
    )
    evaluate.add_argument(
        "run_dir", type=Path, metavar="RUN", help="run folder or checkpoints/step_* folder"
    )
    evaluate.add_argument(
        "--set",
        type=Path,
        action="append",
        metavar="DIR",
        dest="sets",
        help="test set; may be repeated (default: the run's evaluators)",
    )
    evaluate.add_argument(
        "--json", action="store_true", help="one JSON object on stdout instead of a table"
    )
    evaluate.add_argument(
        "--picture", type=Path, metavar="PNG", help="write test images with the model's guesses"
    )
    evaluate.set_defaults(run=_eval)

    data = verbs.add_parser("data", help="corpora").add_subparsers(required=True, metavar="WHAT")
    demo = data.add_parser(
        "demo", help="build a real corpus and its test sets from npm packages of open drawings"
    )
    demo.add_argument(
        "--preset",
        choices=("quick", "full"),
        default="quick",
        help="55 thousand or 190 thousand pairs",
    )
    demo.add_argument("--out", type=Path, default=Path("data/demo"))
    demo.add_argument(
        "--workers", type=int, default=None, help="rendering processes (default: one per core)"
    )
    demo.set_defaults(run=_data_demo)

    config = verbs.add_parser("config", help="configs").add_subparsers(
        required=True, metavar="WHAT"
    )
    show = config.add_parser(
        "show", help="print a config with all its layers and defaults resolved"
    )
    show.add_argument("config", type=Path)
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.set_defaults(run=_config_show)
    return top


def _train(arguments: argparse.Namespace) -> None:
    from clipx.config import load
    from clipx.engine.config import TrainConfig
    from clipx.engine.trainer import train

    train(load(TrainConfig, arguments.config, arguments.overrides))


def _config_show(arguments: argparse.Namespace) -> None:
    from clipx.config import load, to_yaml
    from clipx.engine.config import TrainConfig

    print(to_yaml(load(TrainConfig, arguments.config, arguments.overrides)), end="")


def _data_demo(arguments: argparse.Namespace) -> None:
    from clipx.data.demo.demo import build

    build(arguments.preset, arguments.out, workers=arguments.workers)


def _eval(arguments: argparse.Namespace) -> None:
    from clipx.engine import evaluate_run
    from clipx.engine.evaluate import evaluate

    encoder, state = evaluate_run.load_run(arguments.run_dir)
    evaluators = evaluate_run.chosen_evaluators(arguments.run_dir, arguments.sets)
    results = {"step": state.step, "samples_seen": state.position}
    results |= evaluate(encoder, evaluators)
    if arguments.json:
        print(json.dumps(results))
    else:
        evaluate_run.print_table(results)
    if arguments.picture:
        evaluate_run.write_picture(encoder, evaluators, arguments.picture)


if __name__ == "__main__":
    main()
