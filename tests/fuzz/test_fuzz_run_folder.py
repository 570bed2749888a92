"""Damaged files of a run folder: the run goes on, is refused with a message, or is shown as far as
it can be."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fuzzing import Fuzz
from hypothesis import strategies as st
from stepping import CPU, learner, model

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest
from clipx.checkpoints.format import About, Training, TrainState
from clipx.checkpoints.train_state import LaterVersion
from clipx.distributed.runtime import Job, Runtime
from clipx.report.collect import read_record
from clipx.report.model_outputs import ModelOutputs
from clipx.report.write import render
from clipx.results import read_samples
from clipx.training import corpus, resume, runs
from clipx.training import run_status as status
from clipx.training.learner import Learner
from clipx.training.logging import LogFiles
from clipx.training.optim import OptimConfig, build_optimizer
from clipx.training.run_folder import RunFolder
from clipx.training.run_lock import RunLock
from clipx.types import UserError

CONFIG: dict[str, Any] = {
    "run_dir": "runs/a",
    "seed": 0,
    "model": {"name": "ViT-B-32", "locked": ["visual"]},
    "data": {"shards": "s", "workers": 1},
    "optim": {"lr": 1e-3, "betas": [0.9, 0.98]},
    "evaluators": {},
    "duration": "5 steps",
}
STATUS: dict[str, Any] = {
    "pid": 4711,
    "host": "n2",
    "job": "7",
    "attempt": 1,
    "started": 1.7e9,
    "updated": 1.7e9,
    "step": 2,
    "total_steps": 5,
    "samples_seen": 16,
    "loss": 1.5,
    "samples_per_second": 100.0,
    "checkpoint": 2,
    "state": "running",
    "reason": None,
}
METRICS: dict[str, Any] = {
    "step": 1,
    "samples_seen": 8,
    "epoch": 0.1,
    "train/loss": 2.0,
    "train/lr": 1e-3,
    "train/samples_per_second": 50.0,
    "skipped_steps": 0,
    "memory_gib": 1.0,
    "fingerprint": "00ff",
}
RESULTS: dict[str, Any] = {
    "step": 2,
    "samples_seen": 16,
    "set-zeroshot-top1": 0.5,
    "set-zeroshot-top1_interval": [0.4, 0.6],
    "set-num_samples": 20,
}
BAD: dict[str, Any] = {"step": 1, "shard": "0.tar", "key": "k", "stage": "image", "error": "E"}
NONFINITE: dict[str, Any] = {"step": 1, "rank": 0, "keys": ["a"], "features": True}
SMALL: dict[str, Any] = {  # so that a case can be printed
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "patch_size": 4, "head_width": 8},
    "text_cfg": {"context_length": 4, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1},
}
ALONE = Runtime(SimpleNamespace(device=CPU, process_index=0, num_processes=1))
CORPUS: Any = SimpleNamespace(digest="ab", layout_digest="a", table=list)

numbers = st.integers() | st.floats() | st.sampled_from([10**400, -1, 1 << 63, 2**31, -(10**30)])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def changed(record: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the entries with another value, and some missing."""
    some = st.dictionaries(st.sampled_from(sorted(record)), values, max_size=3)
    missing = st.sets(st.sampled_from(sorted(record)), max_size=2)
    return st.builds(
        lambda new, gone: {k: v for k, v in (record | new).items() if k not in gone}, some, missing
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """One or two of: bits flipped, a piece cut out, repeated, put elsewhere, or replaced."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 2))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 64)))
        how = draw(st.sampled_from(["flip", "cut", "end", "repeat", "move", "replace", "nest"]))
        piece = bytes(data[start:stop])
        if how == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[start:stop]
        elif how == "end":
            del data[start:]
        elif how == "repeat":
            data[start:start] = piece * draw(st.integers(1, 40))
        elif how == "move":
            del data[start:stop]
            place = draw(st.integers(0, len(data)))
            data[place:place] = piece
        elif how == "replace":
            data[start:stop] = draw(st.binary(max_size=40))
        else:
            data[start:start] = draw(st.sampled_from([b"[", b"{", b'{"a":'])) * 5000
    return bytes(data)


def json_file(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    return changed(record).map(lambda r: json.dumps(r).encode()) | damaged(
        json.dumps(record).encode()
    )


def lines_file(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Good lines of steps 1 and 2 around a damaged one."""
    good = [json.dumps(record | {"step": step}).encode() for step in (1, 2)]
    return json_file(record).map(lambda line: b"\n".join([good[0], line, good[1], b""]))


def test_the_record_of_a_run(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, gone on with, and reported: a line beside a damaged one is never lost."""
    monkeypatch.setattr("clipx.training.run_folder.code_version", dict)  # which asks git
    files = {
        "config.yaml": damaged(yaml.safe_dump(CONFIG).encode())
        | changed(CONFIG).map(lambda c: json.dumps(c).encode()),
        "status.json": json_file(STATUS),
        "metrics.jsonl": lines_file(METRICS),
        "results.jsonl": lines_file(RESULTS),
        "quarantine.jsonl": lines_file(BAD),
        "nonfinite.jsonl": lines_file(NONFINITE),
        "version.json": json_file({"clipx": "0.1", "commit": "a" * 40, "cpu": "x"}),
    }
    number = iter(range(10**9))

    def check(case: dict[str, bytes]) -> None:
        folder = tmp_path / str(next(number))
        (folder / "checkpoints").mkdir(parents=True)
        for name, content in case.items():
            (folder / name).write_bytes(content)
        with redirect_stdout(io.StringIO()):
            runs.show([str(folder)], [], as_json=False)
            runs.show([str(folder)], [], as_json=True)
        with contextlib.suppress(UserError):
            render(read_record(folder), ModelOutputs(model_error="none"))
        with contextlib.suppress(UserError):
            run = RunFolder(folder, CONFIG, yaml.safe_dump(CONFIG), total_steps=5)
            run.close("stopped", None)
        logs = LogFiles(folder, 2, tensorboard=False)
        logs.close()
        assert {1, 2} <= logs.evaluated_steps
        kept = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        good = [json.dumps(METRICS | {"step": step}).encode() for step in (1, 2)]
        assert all(line in kept for line in good)
        shutil.rmtree(folder)

    fuzz(st.fixed_dictionaries(files), check)


def test_the_lock_and_the_table_of_a_corpus(
    fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipx.training.run_lock.SILENT_SECONDS", 0.001)
    holder = {"host": "n2", "pid": 4711, "job": "7", "attempt": 1}
    table = [("a.tar", 3, "ab"), ("b\udcff.tar", 4, "cd")]
    corpus.write_table(tmp_path, table)
    content = (tmp_path / "corpus.tsv").read_bytes()

    def check(case: tuple[bytes, bytes, bytes]) -> None:
        for name, data in zip(("lock", "status.json", "corpus.tsv"), case, strict=True):
            (tmp_path / name).write_bytes(data)
        RunLock(tmp_path, Job(host="n1", id="7", attempt=2)).release()
        status.RunStatus(tmp_path / "status.json", Job(host="n1"), total_steps=5).end("stopped")
        with contextlib.suppress(UserError):
            corpus.changes(tmp_path, table)

    fuzz(st.tuples(json_file(holder), json_file(STATUS), damaged(content)), check)


@pytest.fixture
def trained() -> Learner:
    encoder = model(SMALL)
    return learner(encoder, build_optimizer(encoder, OptimConfig()))


def test_a_checkpoint_and_its_manifest(fuzz: Fuzz, tmp_path: Path, trained: Learner) -> None:
    """One file of the newest is damaged, and its manifest is made to fit or not. The checkpoint
    before it is found in any case."""
    sum(p.sum() for p in trained.encoder.parameters()).backward()  # type: ignore[union-attr]
    trained.optimizer.step()
    for step in (1, 2):
        random = [{"torch": torch.get_rng_state(), "cuda": None}]
        training = Training(trained.optimizer.state_dict(), random)
        state = TrainState(step=step, position=8 * step, corpus_digest="ab")
        weights = trained.encoder.state_dict()
        checkpoints.save(tmp_path / "checkpoints", state, weights, training, About(SMALL))
    newest = tmp_path / "checkpoints/step_00000002"
    names = ["training.pt", "state.json", "manifest.json", "open_clip_config.json"]
    names += ["model.safetensors", "optimizer/rank_00000.safetensors"]
    original = {name: (newest / name).read_bytes() for name in names}
    run: Any = SimpleNamespace(path=tmp_path, checkpoints=tmp_path / "checkpoints")

    def damage_of(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        found = damaged(original[name])
        if name.endswith(".json"):
            found |= json_file(json.loads(original[name]))
        if name.endswith(".safetensors"):  # their headers, not only their numbers
            size = 8 + int.from_bytes(original[name][:8], "little")
            found |= damaged(original[name][:size]).map(lambda head: head + original[name][size:])
        return st.tuples(st.just(name), found)

    def check(case: tuple[tuple[str, bytes], bool]) -> None:
        (name, content), resealed = case
        try:
            (newest / name).write_bytes(content)
            if resealed and name != "manifest.json":
                (newest / "manifest.json").unlink()
                manifest.seal(newest, {})
            with contextlib.suppress(UserError):
                checkpoints.load_model(newest)
            found, _ = checkpoints.newest_valid(tmp_path / "checkpoints")
            assert found is not None
            with contextlib.suppress(LaterVersion):
                saved, _ = resume.load_newest(
                    ALONE, run, CORPUS, trained, accept_changed_corpus=True
                )
                assert saved is not None
                assert saved.state.step in (1, 2)
        finally:
            for file, data in original.items():
                (newest / file).write_bytes(data)

    one_file = st.sampled_from(names).flatmap(damage_of)
    fuzz(st.tuples(one_file, st.booleans()), check)


def test_the_samples_of_an_evaluation(fuzz: Fuzz, tmp_path: Path) -> None:
    import numpy as np

    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"keys": np.array(["a", "b"]), "top1": np.zeros(2)}
    np.savez_compressed(buffer, **arrays)
    (tmp_path / "samples").mkdir()

    def check(content: bytes) -> None:
        (tmp_path / "samples/set.npz").write_bytes(content)
        with contextlib.suppress(UserError):
            read_samples(tmp_path)

    fuzz(damaged(buffer.getvalue()), check)
