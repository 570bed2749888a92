"""`evaluate_at_start`, and a run that measures itself on its own held-out part."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_config, write_corpus

from clipx.config import load
from clipx.data import corpus as corpora
from clipx.embed import load as load_model
from clipx.eval_verb import chosen_evaluators
from clipx.evaluators.distributed import run_evaluator
from clipx.training.closing import closing_text
from clipx.training.config import TrainConfig
from clipx.training.trainer import train
from clipx.types import Setting, Stopped

EVALUATORS = {
    "pairs": {"name": "retrieval", "source": "held_out"},
    "held-out": {"name": "validation_loss", "source": "held_out", "batch_size": 16},
}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    corpus = write_corpus(tmp_path / "corpus")
    changes: dict[str, Any] = {
        "duration": "6 steps",
        "checkpoint_every": "3 steps",
        "evaluators": EVALUATORS,
        "evaluate_at_start": True,
    }
    path = write_config(tmp_path, corpus, **changes)
    return load(TrainConfig, path, ["data.held_out=0.25", "data.caption_field=txt"])


def results(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (Path(config.run_dir) / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_results_have_the_step_before_the_first_and_the_last(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    usable = corpora.Corpus.usable

    def recorded(self: Any, *arguments: Any) -> Any:
        found = usable(self, *arguments)
        used.append(found.key)
        return found

    monkeypatch.setattr(corpora.Corpus, "usable", recorded)
    train(config)
    held_out = config.data.open(seed=0, part="held_out")
    keys = {held_out.key(*held_out.place_of(n)) for n in range(int(held_out.sizes.sum()))}
    assert len(set(used)) == 96 - len(keys)
    assert not keys & set(used)

    first, last = results(config)
    assert (first["step"], last["step"]) == (0, 6)
    for line in (first, last):
        assert line["pairs-num_samples"] == line["held-out-num_samples"] == len(keys)
    # The first ones are those of the weights that the run began with.
    assert first["held-out-loss"] != last["held-out-loss"]
    text = closing_text(config, first_step=0, total=6, seconds=1.0)
    before = f"{first['held-out-loss']:.4f} before the first step"
    assert f"held-out-loss {before}, {last['held-out-loss']:.4f} at step 6" in text

    # `clipx eval RUN` measures on the same part.
    evaluators = chosen_evaluators(config.run_dir, [], None, [])
    encoder = load_model(config.run_dir)
    again = run_evaluator(evaluators["held-out"], encoder, Setting()).metrics["loss"]
    assert again == pytest.approx(last["held-out-loss"], abs=1e-5)


def test_a_run_that_is_started_again_evaluates_the_start_once(config: TrainConfig) -> None:
    # Not "with a checkpoint", which there is none of yet.
    with pytest.raises(Stopped, match=r"step 0 of 6 by the time limit$"):
        train(dataclasses.replace(config, stop_after="0.01"))
    train(config)
    train(config)
    assert [line["step"] for line in results(config)] == [0, 6]


def test_by_default_the_start_is_not_evaluated(config: TrainConfig) -> None:
    train(dataclasses.replace(config, evaluate_at_start=False))
    assert [line["step"] for line in results(config)] == [6]
