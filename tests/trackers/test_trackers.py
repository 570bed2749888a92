"""Logs survive a kill, and go back with a run that resumes."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import pytest
import yaml

from clipx.config import build, to_data
from clipx.data.sample import BadSample
from clipx.trackers.jsonl import JsonLines, keep_until, read_lines
from clipx.training.config import TrainConfig
from clipx.training.logging import LogFiles
from clipx.training.run_folder import RunFolder
from clipx.types import UserError


def test_lines_are_readable_while_the_file_is_open(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    records = [
        {"step": 1, "loss": 0.1 + 0.2, "text": "\u00e9\n\u732b"},
        {"step": 2, "loss": 1e-300},
    ]
    for record in records:
        tracker.log(record)
    assert read_lines(path) == records
    tracker.close()
    assert read_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + '{"step": 2}\n'[:-cut])
    whole = [{"step": 1}, {"step": 2}] if cut == 1 else [{"step": 1}]
    assert read_lines(path) == whole
    keep_until(path, 5)  # a resumed run appends
    tracker = JsonLines(path)
    tracker.log({"step": 3})
    tracker.close()
    assert read_lines(path) == [*whole, {"step": 3}]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 6)))
    keep_until(path, 3)
    assert [record["step"] for record in read_lines(path)] == [1, 2, 3]
    keep_until(tmp_path / "absent.jsonl", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_logs_know_what_was_evaluated_up_to_their_step(tmp_path: Path) -> None:
    first = LogFiles(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        first.log(
            {"step": step, "loss": 1.0 / step},
            [BadSample("0.tar", f"k{step}", step, "read", "OSError", "gone")],
        )
        first.log_results({"step": step, "top1": 0.5})
    first.close()
    again = LogFiles(tmp_path, 2, tensorboard=False)
    again.close()
    assert again.evaluated_steps == {1, 2}
    assert [r["step"] for r in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
    quarantine = read_lines(tmp_path / "quarantine.jsonl")
    assert [(line["step"], line["key"]) for line in quarantine] == [(1, "k1"), (2, "k2")]
    assert quarantine[0].keys() == {"step", *BadSample.__dataclass_fields__}


FOREIGN = [
    '{"set": "emoji", "value": 0.5}',
    '{"step": null}',
    '{"step": "4"}',
    '{"step": true}',
    '{"step": 1e99}',
    '{"step": NaN, "caf\\u00e9": "\u00e9"}',
]


def test_a_line_without_a_step_ends_no_run_and_stays(tmp_path: Path) -> None:
    """As another program may have written it, `clipx eval --out` of an earlier version among
    them."""
    for name in ("metrics", "results", "quarantine", "nonfinite"):
        lines = [*FOREIGN, '{"step": 1}', '{"step": 3}', "[1]", "4", "{", "[" * 100_000, "\x00"]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "text": "\xff"}\n')
    logs = LogFiles(tmp_path, 2, tensorboard=False)
    logs.close()
    assert logs.evaluated_steps == {1}
    kept = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert kept == [*FOREIGN, '{"step": 1}']
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b'{"step": 2, "text": "\xff"}\n')


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = LogFiles(tmp_path, 0, tensorboard=True)
    for step in (1, 2):
        logs.log({"step": step, "train/loss": 1 / step, "fingerprint": "ab"}, [])
    logs.log_results({"step": 2, "top1": 0.25})
    logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("top1")] == [(2, 0.25)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "top1"}


BASE = {"run_dir": "a", "seed": 0, "data": {"shards": "s", "workers": 1}, "optim": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"run_dir": "b"}, None),
        ({"duration": "5 steps", "log_every": "1 step", "evaluators": {"x": {"path": "p"}}}, None),
        ({"data": {"shards": "s", "workers": 4}}, None),
        ({"data": {"shards": "t", "workers": 1}}, "data.shards differ"),
        ({"seed": 1, "optim": {"lr": 2.0}}, "optim.lr, seed differ"),
        ({"optim": {"lr": math.nan}}, "optim.lr differ"),
    ],
)
def test_a_run_folder_goes_on_with_its_own_config_only(
    tmp_path: Path, change: dict[str, object], refused: str | None
) -> None:
    RunFolder(tmp_path, BASE, yaml.safe_dump(BASE), total_steps=5).close("stopped", None)
    (tmp_path / "checkpoints/step_00000002").mkdir()
    other = BASE | change
    if refused is None:
        again = RunFolder(tmp_path, other, yaml.safe_dump(other), total_steps=5)
        again.close("stopped", None)
        assert len((tmp_path / "version.json").read_text().splitlines()) == 2
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == other
    else:
        with pytest.raises(UserError, match=f"belongs to another config: {refused}"):
            RunFolder(tmp_path, other, yaml.safe_dump(other), total_steps=5)
        assert not (tmp_path / "lock").exists()
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == BASE


MINIMAL = {
    "run_dir": "a",
    "data": {"shards": "s"},
    "model": {"name": "ViT-B-32"},
    "duration": "5 steps",
    "global_batch_size": 4,
}


def test_a_setting_that_is_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    config = to_data(build(TrainConfig, MINIMAL, where="the test"))
    older = copy.deepcopy(config)
    del older["objective"], older["data"]["decode"]
    RunFolder(tmp_path, older, yaml.safe_dump(older), total_steps=5).close("stopped", None)
    (tmp_path / "checkpoints/step_00000002").mkdir()
    other = config | {"objective": {"name": "slip"}}
    with pytest.raises(UserError, match=r"belongs to another config: objective\.name differ"):
        RunFolder(tmp_path, other, yaml.safe_dump(other), total_steps=5)
    again = RunFolder(tmp_path, config, yaml.safe_dump(config), total_steps=5)
    assert again.messages == []
    again.close("stopped", None)


def test_a_run_of_before_orientation_had_a_setting_goes_on_with_stored_pixels(
    tmp_path: Path,
) -> None:
    """And the message has the values that continue it."""
    config = to_data(build(TrainConfig, MINIMAL, where="the test"))
    older = copy.deepcopy(config)
    del older["data"]["exif_orientation"]
    older["data"]["max_image_pixels"] = 25_000_000
    RunFolder(tmp_path, older, yaml.safe_dump(older), total_steps=5).close("stopped", None)
    (tmp_path / "checkpoints/step_00000002").mkdir()
    with pytest.raises(UserError) as refusal:
        RunFolder(tmp_path, config, yaml.safe_dump(config), total_steps=5)
    values = "data.max_image_pixels=25000000 data.exif_orientation=false"
    assert str(refusal.value).endswith(f"go on with the run's own values: {values}")
    same = copy.deepcopy(config)
    same["data"] |= {"exif_orientation": False, "max_image_pixels": 25_000_000}
    RunFolder(tmp_path, same, yaml.safe_dump(same), total_steps=5).close("stopped", None)


def test_a_run_without_a_checkpoint_takes_a_corrected_config(tmp_path: Path) -> None:
    RunFolder(tmp_path, BASE, yaml.safe_dump(BASE), total_steps=5).close("failed", "a typo")
    corrected = BASE | {"seed": 1}
    again = RunFolder(tmp_path, corrected, yaml.safe_dump(corrected), total_steps=5)
    assert again.messages == [
        "the config differs from that of an earlier start (seed), which has left no checkpoint: "
        "it starts anew"
    ]
    again.close("stopped", None)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == corrected


DAMAGE = ["", "\x00" * 40, "a: [", "- 1", "a: !!python/object:os.system {}", "[" * 5000, None]


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_config_is_read_from_the_newest_checkpoint(
    tmp_path: Path, text: str | None
) -> None:
    RunFolder(tmp_path, BASE, yaml.safe_dump(BASE), total_steps=5).close("stopped", None)
    for step, content in ((2, yaml.safe_dump(BASE)), (4, "")):
        folder = tmp_path / f"checkpoints/step_{step:08d}"
        folder.mkdir()
        (folder / "config.yaml").write_text(content)
    if text is None:
        (tmp_path / "config.yaml").unlink()
    else:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="belongs to another config: seed differ"):
        RunFolder(tmp_path, BASE | {"seed": 1}, "", total_steps=5)
    again = RunFolder(tmp_path, BASE, yaml.safe_dump(BASE), total_steps=5)
    assert ["step_00000002/config.yaml is taken" in told for told in again.messages] == [True]
    again.close("stopped", None)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == BASE


def test_checkpoints_of_an_unknown_config_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step_00000002").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml is damaged, so it is unknown which config"):
        RunFolder(tmp_path, BASE, yaml.safe_dump(BASE), total_steps=5)
    assert (tmp_path / "config.yaml").read_text() == ""


def test_lines_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a line fits, and is not written twice."""
    path, write, room = tmp_path / "a.jsonl", os.write, [4]

    def into_little_room(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        count = write(file, data[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr("clipx.trackers.jsonl.os.write", into_little_room)
    tracker = JsonLines(path)
    tracker.log({"step": 1})
    assert tracker.fault == "a.jsonl waits to be written: [Errno 28] No space left on device"
    tracker.log({"step": 2})
    room[0] = 10**6
    tracker.log({"step": 3})
    assert tracker.fault is None
    tracker.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    room[0] = 0
    tracker = JsonLines(path)
    tracker.log({"step": 4})
    with pytest.raises(OSError, match="No space left"):
        tracker.close()
