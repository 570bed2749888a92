"""The command line. Exit codes: 0 done, 1 a fault, or something bad found by `clipx data index` and
`verify`, 2 the user's mistake (a message, no traceback), 75 training has stopped early with a
checkpoint (0 under torchrun and accelerate, which would restart it), or `clipx runs --check` found
a run that is not finished, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipx import cli_data, strict_json
from clipx.types import PeerError, RankError, Stopped, UserError


def run() -> None:
    """The program. A rank among others leaves without the interpreter's own end, in which threads
    of the process group wait for peers, or abort the process by taking the GIL for what is left of
    their last collective (https://github.com/pytorch/pytorch/pull/179291): all that it leaves is
    written, and its exit code is what a scheduler goes by."""
    code: int | str | None = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001  told as the interpreter would
        sys.excepthook(type(error), error, error.__traceback__)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main(argv: Sequence[str] | None = None) -> None:
    """`run` for those who call it: exits by SystemExit."""
    arguments = parse(argv)
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
    except PeerError as error:
        print(f"clipx: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print("clipx: interrupted", file=sys.stderr)
        sys.exit(130)


def _must_say(error: UserError) -> bool:
    """One copy of what all ranks have met, not one a rank."""
    if isinstance(error, RankError) or "torch" not in sys.modules:
        return True
    from clipx.distributed.runtime import speaks

    return speaks()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """`key=value` may stand behind options too, which argparse alone would refuse."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if "overrides" in arguments and all("=" in text and text[0] != "-" for text in rest):
        arguments.overrides += rest
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="clipx", description="Exact, resumable CLIP pretraining.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("config", type=Path, help="YAML file, e.g. configs/run/demo_tiny.yaml")
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. run_dir=runs/a optim.lr=1e-3"
    )
    train.set_defaults(run=_train)

    _add_eval_verbs(verbs)

    cli_data.add_verbs(verbs)

    _add_runs(verbs)

    config = verbs.add_parser("config", help="configs").add_subparsers(
        required=True, metavar="WHAT"
    )
    show = config.add_parser("show", help="print a config with all layers and defaults resolved")
    show.add_argument("config", type=Path)
    show.add_argument("overrides", nargs="*", metavar="key=value")
    show.set_defaults(run=_config_show)
    return top


def _add_runs(verbs: Any) -> None:
    runs = verbs.add_parser("runs", help="runs with step, loss, last checkpoint; alive or not")
    text = "folders of runs, or YAML files, perhaps with key=value, for the runs that they name"
    runs.add_argument("targets", nargs="*", metavar="RUN", help=f"{text} (default: runs)")
    text = "print step/total of one run; exit with 0 when it is finished, 75 when not"
    runs.add_argument("--check", action="store_true", help=text)
    runs.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    runs.set_defaults(run=_runs)


def _add_eval_verbs(verbs: Any) -> None:
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
    kinds = ("auto", "bf16", "fp16", "tf32", "fp32")
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


def _train(arguments: argparse.Namespace) -> None:
    from clipx.training.interruption import EXIT_STOPPED, Stop

    with Stop().listening() as stop:  # before the seconds that importing torch takes
        from clipx.config import load
        from clipx.distributed.runtime import restarts_failures, speaks
        from clipx.training.config import TrainConfig
        from clipx.training.trainer import train

        try:
            train(load(TrainConfig, arguments.config, arguments.overrides), stop)
        except Stopped as early:
            if speaks():
                print(f"clipx: {early}; the same command goes on", file=sys.stderr, flush=True)
            sys.exit(0 if restarts_failures() else EXIT_STOPPED)


def _runs(arguments: argparse.Namespace) -> None:
    from clipx.training import runs

    overrides = [text for text in arguments.targets if "=" in text]
    targets = [text for text in arguments.targets if "=" not in text] or ["runs"]
    if arguments.check:
        sys.exit(runs.check(targets, overrides))
    runs.show(targets, overrides, as_json=arguments.json)


def _config_show(arguments: argparse.Namespace) -> None:
    from clipx.config import load, to_yaml
    from clipx.training.config import TrainConfig

    print(to_yaml(load(TrainConfig, arguments.config, arguments.overrides)), end="")


def _eval(arguments: argparse.Namespace) -> None:
    from clipx import eval_verb as evaluate_run
    from clipx.results import check_out, lines_of, write_results

    if arguments.out:
        check_out(arguments.out)
    done = evaluate_run.run(
        arguments.model,
        sets=arguments.sets,
        suite=arguments.suite,
        overrides=arguments.overrides,
        precision=arguments.precision,
        averaged=not arguments.raw,
        picture=arguments.picture is not None,
    )
    if done.runtime.is_main:
        if arguments.json:
            for name, result in done.results.items():
                for line in lines_of(arguments.model, name, result):
                    print(strict_json.dumps(line))
        else:
            evaluate_run.print_table(done.encoder.source, done.results)
        if arguments.out:
            write_results(arguments.out, arguments.model, done.results)
        if arguments.picture:
            evaluate_run.write_picture(done.encoder, done.evaluators, arguments.picture)
    done.runtime.close()
    if done.faults:
        raise UserError("\n".join(done.faults))


def _compare(arguments: argparse.Namespace) -> None:
    from clipx import eval_verb, results

    differences = results.compare(arguments.first, arguments.second)
    if arguments.json:
        for difference in differences:
            print(strict_json.dumps(vars(difference)))
    else:
        eval_verb.print_comparison(differences)


def _report(arguments: argparse.Namespace) -> None:
    from clipx.report.write import write_report

    print(write_report(arguments.folder, arguments.out))
