"""A training on a pseudo-terminal, and into a file, as a person sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import environment, start
from screens import on_terminal
from tiny_runs import write_config, write_test_set


@pytest.fixture(scope="module")
def short_config(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    """20 steps, with an evaluation at the end."""
    folder = tmp_path_factory.mktemp("short")
    colors = {"name": "zero_shot", "path": str(write_test_set(folder / "colors"))}
    changes = {"duration": "20 steps", "log_every": "5 steps", "evaluators": {"colors": colors}}
    return write_config(folder, pairs, **changes)


def test_a_run_on_a_terminal_and_its_second_start_in_a_notebook(
    short_config: Path, tmp_path: Path
) -> None:
    run = short_config.parent / "run"
    code, lines, screens = on_terminal(
        ["train", short_config], width=80, environment=environment() | {"FORCE_COLOR": "1"}
    )
    assert code == 0, lines
    scrolled = [line for line in lines if line.startswith("step ") and "loss" in line]
    assert [line.split("  loss")[0] for line in scrolled] == [
        "step  5",
        "step 10",
        "step 15",
        "step 20",
    ]
    end = next(n for n, line in enumerate(lines) if line.startswith("finished 20 steps in 0:"))
    assert "step 20/20 0:00:00 left loss " in lines[end - 1]
    assert any(line.startswith("next: clipx report ") for line in lines[end:])
    # Below each line that has scrolled there was a bar.
    training = [screen for screen in screens if "step  5  loss" in "\n".join(screen)]
    before_the_end = [s for s in training if "finished" not in "\n".join(s)]
    assert before_the_end
    assert all("left" in screen[-1] and "/20 " in screen[-1] for screen in before_the_end)

    # The same command again: nothing is trained, and no code moves a cursor.
    again = start(["train", short_config], tmp_path / "log", FORCE_COLOR="1")
    assert again.wait() == [0], again.said
    assert "\x1b" not in again.said
    assert f"already finished with 20 of 20 steps: {run}\n" in again.said
    assert "colors-zeroshot-top1 " in again.said
    assert again.said.endswith(f"next: clipx report {run}\n")
