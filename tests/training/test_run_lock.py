"""Who may write a run folder: one process, known by its lock here, by its heartbeat elsewhere."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from clipx.distributed.runtime import Job
from clipx.training import run_lock as lock
from clipx.training import run_status as status
from clipx.training.run_lock import RunLock
from clipx.training.run_status import RunStatus
from clipx.types import UserError

HERE, THERE = Job(host="n1"), Job(host="n2", id="7")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "DYING_SECONDS", 0.1)
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.1)


def left_over(folder: Path, job: Job, *, age: float = 0.0) -> None:
    """As a process of `job` leaves it that was killed."""
    content = {"host": job.host, "pid": 4711, "job": job.id, "attempt": job.attempt}
    (folder / "lock").write_text(json.dumps(content))
    record = {"state": "running", "updated": time.time() - age}
    (folder / "status.json").write_text(json.dumps(record))


def test_one_at_a_time(tmp_path: Path) -> None:
    first = RunLock(tmp_path, HERE)
    assert first.message is None
    with pytest.raises(UserError, match=r"in use by process \d+ on n1; wait for it"):
        RunLock(tmp_path, HERE)
    first.release()
    assert not (tmp_path / "lock").exists()
    RunLock(tmp_path, HERE).release()


def test_what_a_dead_process_left_is_taken_over_with_a_word(tmp_path: Path) -> None:
    left_over(tmp_path, HERE)
    mine = RunLock(tmp_path, HERE)
    assert mine.message == "taken over from process 4711 on n1, which is gone"
    mine.release()


def test_a_holder_elsewhere_whose_heart_beats_is_left_alone(tmp_path: Path) -> None:
    """Though the file system knows of no lock."""
    left_over(tmp_path, THERE)
    beating = RunStatus(tmp_path / "status.json", THERE, total_steps=5)
    with pytest.raises(UserError, match="in use by process 4711 on n2 of job 7"):
        RunLock(tmp_path, HERE)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == 4711, "it is still theirs"
    beating.end("stopped")
    RunLock(tmp_path, HERE).release()


@pytest.mark.parametrize("hours", [0, -26, 26], ids="{} h off".format)
def test_a_silent_one_elsewhere_is_dead(hours: int, tmp_path: Path) -> None:
    left_over(tmp_path, THERE, age=3600 * hours)
    began = time.monotonic()
    mine = RunLock(tmp_path, HERE)
    assert mine.message == "taken over from process 4711 on n2 of job 7, which is gone"
    assert time.monotonic() - began >= lock.SILENT_SECONDS, "watched, whatever the clocks say"
    mine.release()


@pytest.mark.parametrize("hours", [-26, 0, 26], ids="{} h off".format)
def test_a_clock_that_is_off_changes_nothing(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process lives on a host whose clock is hours behind or ahead."""
    left_over(tmp_path, THERE, age=3600 * hours)
    clock = time.time

    class Elsewhere:
        time = staticmethod(lambda: clock() - 3600 * hours)

    monkeypatch.setattr(status, "time", Elsewhere)
    beating = RunStatus(tmp_path / "status.json", THERE, total_steps=5)
    with pytest.raises(UserError, match="in use by process 4711 on n2 of job 7"):
        RunLock(tmp_path, HERE)
    beating.end("stopped")


def test_one_that_has_taken_the_lock_and_written_no_status_yet_is_waited_for(
    tmp_path: Path,
) -> None:
    """The status is of an earlier start, in a container where each start has the same number."""
    left_over(tmp_path, THERE)
    earlier = {"state": "stopped", "host": "n2", "pid": 4711}
    (tmp_path / "status.json").write_text(json.dumps(earlier))
    starting = threading.Timer(
        0.2, lambda: (tmp_path / "status.json").write_text(json.dumps(earlier | {"step": 1}))
    )
    starting.start()
    with pytest.raises(UserError, match="in use by process 4711 on n2"):
        RunLock(tmp_path, HERE)
    starting.join()


def test_one_elsewhere_whose_disk_is_full_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status can no longer be written, but its time changes."""
    left_over(tmp_path, THERE)
    beating = RunStatus(tmp_path / "status.json", THERE, total_steps=5)

    def full(path: Path, text: str, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="in use by process 4711 on n2"):
        RunLock(tmp_path, HERE)
    beating.end("stopped")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "{", '{"host": 3, "job": "7", "attempt": "x"}', "\x00"]
)
def test_a_lock_that_cannot_be_read_is_watched_too(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(content)
    began = time.monotonic()
    RunLock(tmp_path, Job(host="n1", id="7", attempt=1)).release()
    assert time.monotonic() - began >= lock.SILENT_SECONDS


def test_a_lock_that_a_server_keeps_for_a_dead_host_is_replaced(tmp_path: Path) -> None:
    """A lock of this process stands for the one that the server keeps."""
    kept = RunLock(tmp_path, THERE)
    left_over(tmp_path, THERE)
    mine = RunLock(tmp_path, HERE)
    assert json.loads((tmp_path / "lock").read_text())["host"] == "n1"
    kept.release()
    assert (tmp_path / "lock").exists(), "it was another file"
    mine.release()


def test_the_next_start_of_a_job_does_not_wait_for_the_one_before(tmp_path: Path) -> None:
    left_over(tmp_path, THERE)
    began = time.monotonic()
    RunLock(tmp_path, Job(host="n1", id="7", attempt=1)).release()
    assert time.monotonic() - began < 0.4


def test_a_status_is_fresh_while_its_process_lives_and_whole_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    one = RunStatus(path, THERE, total_steps=50)
    first = status.read_status(path)
    assert first["state"] == "running"
    assert (first["host"], first["job"], first["attempt"]) == ("n2", "7", 0)
    deadline = time.monotonic() + 20
    while status.read_status(path)["updated"] == first["updated"]:
        assert time.monotonic() < deadline
    ended = threading.Event()
    torn = []

    def look() -> None:
        while not ended.is_set():
            torn.append(bool(status.read_status(path)))

    reader = threading.Thread(target=look)
    reader.start()
    for step in range(300):
        one.update(step=step, loss=1.5)
    ended.set()
    reader.join()
    assert all(torn)
    one.end("failed", "why")
    found = status.read_status(path)
    assert (found["step"], found["state"], found["reason"]) == (299, "failed", "why")
    again = RunStatus(path, HERE, total_steps=60)
    found = status.read_status(path)
    assert (found["step"], found["loss"], found["total_steps"]) == (299, 1.5, 60)
    assert (found["state"], found["reason"]) == ("running", None)
    again.end("stopped")


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    one = RunStatus(tmp_path / "status.json", HERE, total_steps=1)
    (tmp_path / "status.json").unlink()
    tmp_path.rename(tmp_path.with_name("gone"))
    one.update(step=1)
    one.end("finished")
    tmp_path.with_name("gone").rename(tmp_path)
    assert list(tmp_path.iterdir()) == []
