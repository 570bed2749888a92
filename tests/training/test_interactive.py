"""`clipx.train`: from Python, and in a notebook."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_runs import write_config, write_corpus

import clipx
from clipx.config import load
from clipx.training import notebook_table
from clipx.training.config import TrainConfig
from clipx.training.interruption import SIGNALS
from clipx.training.notebook_table import NotebookTable, notebook_display
from clipx.types import Stopped, UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


class Cell:
    """The output of a notebook's cell: `IPython.display.display` and the handle that it returns."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []

    def display(self, data: dict[str, str], *, display_id: bool, raw: bool) -> Cell:
        assert display_id
        assert raw
        self.shown.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.shown.append(data)


def in_ipython(monkeypatch: pytest.MonkeyPatch, shell: Any) -> Cell:
    cell = Cell()
    package: Any = ModuleType("IPython")
    package.get_ipython = lambda: shell
    display: Any = ModuleType("IPython.display")
    display.display = cell.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return cell


def test_a_run_from_a_file_a_mapping_and_a_config_is_the_same(tmp_path: Path, corpus: Path) -> None:
    path = write_config(tmp_path, corpus, duration="3 steps")
    data = yaml.safe_load(path.read_text())
    records: list[dict[str, Any]] = []
    first = clipx.train(path, f"run_dir={tmp_path}/a", "duration=2 steps", on_log=records.append)
    assert (first.folder, first.step, first.samples_seen) == (tmp_path / "a", 2, 48)
    assert [record["step"] for record in records] == [1, 2]
    assert first.metrics == records
    assert first.results == []
    assert repr(first) == f"FinishedRun(folder={first.folder!r}, step=2, samples_seen=48)"

    second = clipx.train(data | {"run_dir": str(tmp_path / "b"), "duration": "2 steps"})
    config = load(TrainConfig, path)
    third = clipx.train(config, f"run_dir={tmp_path}/c", "duration=2 steps")
    losses = [record["train/loss"] for record in records]
    for run in (second, third):
        assert [record["train/loss"] for record in run.metrics] == losses
    model = first.load(dtype="bfloat16")
    assert repr(model).startswith(f"Encoder({tmp_path / 'a'} at step 2, 48 samples seen: ")

    # The same call with a longer duration continues the run.
    longer = clipx.train(data | {"run_dir": str(tmp_path / "b")})
    assert [record["step"] for record in longer.metrics] == [1, 2, 3]


def test_outside_of_a_notebook_progress_goes_to_stderr(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clipx.train(write_config(tmp_path, corpus, duration="1 steps"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "loss" in err


def test_in_a_notebook_a_table_is_updated_instead(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    cell = in_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    run = clipx.train(write_config(tmp_path, corpus, duration="2 steps"))
    assert capsys.readouterr().err == ""
    html = cell.shown[-1]["text/html"]
    assert "step 2 of 2" in html
    assert "<th>loss</th>" in html
    text = cell.shown[-1]["text/plain"]
    for record in run.metrics:
        assert f"<td>{record['train/loss']:.4g}</td>" in html
        assert f"loss {record['train/loss']:.4g}  " in text
    assert "96 pairs in 4 shards" in html, "messages are shown below the table"


@pytest.mark.parametrize("shell", [None, SimpleNamespace(), SimpleNamespace(kernel=None)])
def test_ipython_in_a_terminal_is_no_notebook(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_ipython(monkeypatch, shell)
    assert notebook_display() is None


def test_without_ipython_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert notebook_display() is None
    assert "IPython" not in sys.modules


def test_the_table_shows_the_newest_lines_and_escapes_messages(monkeypatch: Any) -> None:
    monkeypatch.setattr(notebook_table, "SECONDS_BETWEEN_UPDATES", 0)
    cell = Cell()
    table = NotebookTable(cell.display, total_steps=100, first_step=10)
    assert cell.shown[-1]["text/plain"] == "step 10 of 100"
    for step in range(11, 31):
        table.log({"step": step, "train/loss": step / 4, "train/image_to_text_accuracy": 0.5})
    table.say("shards <b>lost</b>")
    html = cell.shown[-1]["text/html"]
    assert "shards &lt;b&gt;lost" in html
    assert html.count("<tr>") == notebook_table.ROWS_SHOWN + 1
    assert "<td>30</td><td>7.5</td><td>50%</td>" in html
    assert "<td>18</td>" not in html
    assert "learning rate" not in html, "columns that the run does not log are left out"
    assert "step 30 of 100, 0:00:0" in cell.shown[-1]["text/plain"]
    table.step(31)
    assert "step 31 of 100" in cell.shown[-1]["text/plain"]
    table.close()


def test_a_fast_run_does_not_flood_the_browser() -> None:
    cell = Cell()
    table = NotebookTable(cell.display, total_steps=10_000, first_step=0)
    for step in range(200):
        table.step(step)
    assert len(cell.shown) < 100
    table.close()
    assert "step 199 of" in cell.shown[-1]["text/plain"], "the last state is always shown"


def test_an_interrupt_ends_with_a_checkpoint_and_the_same_call_continues(
    tmp_path: Path, corpus: Path
) -> None:
    path = write_config(tmp_path, corpus, duration="4 steps")
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match=r"stopped at step \d of 4 by SIGINT, with a checkpoint"):
        clipx.train(path, on_log=interrupt)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    run = clipx.train(path)
    assert run.step == 4
    assert [record["step"] for record in run.metrics] == [1, 2, 3, 4]


def test_a_thread_can_train_too(tmp_path: Path, corpus: Path) -> None:
    """Signal handlers belong to the main thread."""
    runs: list[clipx.FinishedRun] = []
    path = write_config(tmp_path, corpus, duration="1 steps")
    thread = threading.Thread(target=lambda: runs.append(clipx.train(path)))
    thread.start()
    thread.join()
    assert runs[0].step == 1


def test_mistakes_are_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config must be a YAML file, a mapping or a TrainConfig"):
        clipx.train(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="config the mapping does not fit"):
        clipx.train({"run_dir": str(tmp_path), "batch": 3})
    with pytest.raises(UserError, match=r"override 'lr' is not of the form key=value"):
        clipx.train({}, "lr")
