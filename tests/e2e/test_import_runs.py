"""A run of open_clip's trainer goes on under `clipx train`, and resumes there as any other run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml
from peer_runs import BATCH, STEPS, write_run
from tiny_runs import metrics, train, weights_digest

from clipx.migrate.run import import_run


def test_an_imported_run_trains_on_evaluates_and_resumes(tmp_path: Path) -> None:
    params, checkpoint = write_run(tmp_path, epochs=3)
    run = tmp_path / "run"
    import_run(params, checkpoint, run)

    config = run / "train.yaml"
    data = yaml.safe_load(config.read_text())
    assert data["duration"] == f"{3 * STEPS} steps", "in steps of the peer's epochs"
    data["data"]["streams"] = 6
    config.write_text(yaml.safe_dump(data))
    done = train(config)
    assert f"resumed from {run}/checkpoints/step_{STEPS:08d} at step {STEPS}" in done.stderr
    assert "imported from another program, so any corpus fits" in done.stderr
    records = metrics(run)
    assert [record["step"] for record in records] == list(range(STEPS + 1, 3 * STEPS + 1))
    assert records[0]["samples_seen"] == (STEPS + 1) * BATCH
    # The cosine of the peer, after a warmup of 2 of 9 steps: 1 of 7 has passed at step 4.
    assert abs(records[0]["train/lr"] - 1e-3 * 0.5 * (1 + 0.9009688679)) < 1e-9

    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [result["step"] for result in results][-1] == 3 * STEPS
    assert 0 < results[-1]["val-loss"] < 10
    assert results[-1]["val-num_samples"] == 10

    # Now it is a run of clipx, bound to its corpus and exact from its middle checkpoint.
    last = run / f"checkpoints/step_{3 * STEPS:08d}"
    assert json.loads((last / "state.json").read_text())["corpus_digest"]
    digest = weights_digest(run, 3 * STEPS)
    shutil.rmtree(last)
    train(config)
    assert weights_digest(run, 3 * STEPS) == digest
