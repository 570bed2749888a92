"""The folder of `clipx eval --out`: where it may be, and what `clipx compare` advises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from clipx import cli
from clipx.comparison import compare
from clipx.results import check_out, read_samples, write_results
from clipx.types import Result, UserError

RESULT = Result(
    metrics={"zeroshot-top1": 0.5, "num_samples": 2},
    keys=["a", "b"],
    samples={"zeroshot-top1": torch.tensor([0.0, 1.0])},
)


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "metrics.jsonl", "checkpoints/"])
def test_results_never_go_into_the_folder_of_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is evaluated."""
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).touch()
    test_set = tmp_path / "set"
    test_set.mkdir()
    (test_set / "0.tar").touch()  # looks like one, until it is read
    (tmp_path / "results.jsonl").write_text('{"step": 1}\n')
    sets = ["--set", str(test_set), "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "open_clip:absent/absent", *sets])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert f"give another folder, for example --out {tmp_path / 'evaluations'}" in printed
    check_out(tmp_path / "evaluations")
    assert (tmp_path / "results.jsonl").read_text() == '{"step": 1}\n'


def test_neither_a_checkpoint_nor_a_file_takes_results(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UserError, match="is a checkpoint"):
        check_out(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        check_out(tmp_path / "manifest.json")


def test_what_compare_advises_can_be_followed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError) as refused:
        compare(run, run)
    advised = re.findall(r"--out ([^`]+)`, and compare (\S+)$", str(refused.value))
    assert advised == [(str(run / "evaluations"),) * 2]
    check_out(run / "evaluations")
    write_results(run / "evaluations", "m", {"set": RESULT})
    with pytest.raises(UserError, match=f"those of this run are in {run / 'evaluations'}$"):
        compare(run, run)
    (found,) = compare(run / "evaluations", run / "evaluations")
    assert found.num_samples == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY"])
def test_samples_that_cannot_be_read_are_named(content: bytes, tmp_path: Path) -> None:
    write_results(tmp_path, "m", {"set": RESULT})
    (tmp_path / "samples/set.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"per-sample results .*set\.npz cannot be read"):
        read_samples(tmp_path)
