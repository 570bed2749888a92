"""Config is data: layers and overrides in, a frozen checked object out, all complaints at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipx.config import build, load, merge, parse_override, to_data, to_yaml
from clipx.config_diff import differences
from clipx.losses import infonce
from clipx.training.config import RunPlan, TrainConfig
from clipx.types import UserError

BASE: dict[str, Any] = {
    "run_dir": "runs/a",
    "data": {"shards": "data/train"},
    "model": {"name": "ViT-B-32"},
    "duration": "2 epochs",
    "global_batch_size": 8,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def test_numbers_are_numbers_and_defaults_are_filled(base: Path) -> None:
    # PyYAML reads 5e-4 as text
    config = load(TrainConfig, base, ["optim.lr=5e-4", "data.workers=0", "tensorboard=true"])
    assert config.optim.lr == 5e-4
    assert config.data.workers == 0
    assert config.tensorboard is True
    assert config.data.crop_scale == (0.9, 1.0)
    assert isinstance(config.loss, infonce.Config)


def test_a_config_is_frozen(base: Path) -> None:
    config = load(TrainConfig, base)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss=infonce", "data.shards=[a.tar, b.tar]", "seed=7"],
        ["evaluators.x={name: zero_shot, path: p}", "evaluators.y={name: retrieval, path: q}"],
    ],
)
def test_a_written_config_reads_back_equal(
    base: Path, tmp_path: Path, overrides: list[str]
) -> None:
    config = load(TrainConfig, base, overrides)
    assert build(TrainConfig, to_data(config), where="itself") == config
    copy = tmp_path / "resolved.yaml"
    copy.write_text(to_yaml(config))
    assert load(TrainConfig, copy) == config
    assert differences(to_data(load(TrainConfig, copy)), to_data(config)) == []


def test_layers_lie_over_one_another(base: Path, tmp_path: Path) -> None:
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/slow.yaml").write_text("optim: {lr: 1e-5, weight_decay: 0.1}\nseed: 1\n")
    (tmp_path / "layers/mid.yaml").write_text("extends: [../base.yaml, slow.yaml]\nseed: 2\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: layers/mid.yaml\noptim: {lr: 1e-3}\n")
    config = load(TrainConfig, top, ["optim.warmup=5 steps"])
    assert config.optim.lr == 1e-3  # top over slow
    assert config.optim.weight_decay == 0.1  # slow's is kept
    assert config.optim.warmup == "5 steps"
    assert config.seed == 2  # mid over slow
    assert config.run_dir == "runs/a"


def test_a_new_name_keeps_the_other_settings(base: Path, tmp_path: Path) -> None:
    old = {"loss": {"name": "infonce", "label_smoothing": 0.1}, "seed": 1}
    assert merge(old, {"loss": {"label_smoothing": 0.2}})["loss"]["label_smoothing"] == 0.2
    assert merge(old, {"loss": {"name": "sigmoid"}})["loss"]["label_smoothing"] == 0.1
    assert merge(old, {"loss": "sigmoid"})["loss"] == "sigmoid"
    assert merge(old, {"loss": {}})["loss"] == {}
    assert old["loss"] == {"name": "infonce", "label_smoothing": 0.1}  # untouched

    # Fine-tuning must not fall back to random weights because the architecture has a new name.
    parent = tmp_path / "parent.yaml"
    initial = "initial: {name: checkpoint, path: a.pt}"
    parent.write_text(f"extends: base.yaml\nmodel: {{{initial}, locked: [visual]}}\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\nmodel: {name: ViT-B-16}\n")
    for config in (load(TrainConfig, child), load(TrainConfig, parent, ["model.name=ViT-B-16"])):
        assert config.model.name == "ViT-B-16"
        assert config.model.initial.path == "a.pt"
        assert config.model.locked == ["visual"]


def test_a_setting_that_the_new_name_lacks_is_an_error_with_a_remedy(base: Path) -> None:
    settings = ["loss={name: infonce, label_smoothing: 0.1}", "loss.name=sigmoid"]
    with pytest.raises(UserError, match=r"(?s)loss.label_smoothing: unknown key.*`loss: NAME`"):
        load(TrainConfig, base, settings)
    assert to_data(load(TrainConfig, base, [*settings, "loss=sigmoid"]).loss)["name"] == "sigmoid"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=x y", {"a": {"b": {"c": "x y"}}}),
        ("a=b=c", {"a": "b=c"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a=", {"a": None}),
        ("a={b: 1}", {"a": {"b": 1}}),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["", "lr", "=3", "a..b=3", ".a=3", "a.=3"])
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not of the form key=value, for example optim\.lr"):
        parse_override(text)


COMPLAINTS = {
    "optim.lrr=1": "optim.lrr: unknown key; did you mean 'lr'",
    "los=infonce": "los: unknown key; did you mean 'loss'",
    "data.qqq=1": "data.qqq: unknown key; known: shards, sources",
    "optim.lr=fast": "optim.lr: .*valid number.*'fast'",
    "global_batch_size=0": "global_batch_size: .*greater than or equal to 1.*given: 0",
    "data.crop_scale=[0.5, 1.5]": "data.crop_scale.1: .*less than or equal to 1",
    "data.crop_ratio=[0, 1]": "data.crop_ratio.0: .*greater than 0",
    "precision=fp8": "precision: .*'fp8'",
    "data=3": "data: .*given: 3",
    "loss=infonc": "loss: 'infonc' is no module of clipx.losses; did you mean 'infonce'",
    "loss.temperature=1": "loss: needs a `name`; known: .*infonce",
    "loss={name: infonce, x: 1}": "loss.x: unknown key",
    "loss=.infonce": "loss: '.infonce' is no module",
    "loss=no.such.module": "loss: 'no.such.module' is no module",
    "loss=os.path": "loss: module os.path holds no class Config",
    "loss=infonce/x y": "loss: 'infonce/x y' is no module",
    'run_dir="a\\0b"': r"run_dir: 'a\\x00b' has a character that is no text",
    "seed=0x" + "f" * 5000: "seed: an integer of 20000 bits; give one of 63 bits at most",
    "optim.lr=.nan": "optim.lr: .*finite number",
    "optim.lr=.inf": "optim.lr: .*finite number",
    "optim.weight_decay=.inf": "optim.weight_decay: .*finite number",
    "optim.weight_decay=-0.1": "optim.weight_decay: .*greater than or equal to 0",
    "optim.eps=0": "optim.eps: .*greater than 0",
    "optim.eps=.nan": "optim.eps: .*finite number",
    "optim.betas=[0.9, 1]": "optim.betas.1: .*less than 1",
    "optim.betas=[-0.1, 0.9]": "optim.betas.0: .*greater than or equal to 0",
    "optim.clip_grad_norm=-1": "optim.clip_grad_norm: .*greater than 0",
    "optim.clip_grad_norm=0": "optim.clip_grad_norm: .*greater than 0",
    "data.window=1e22": "data.window: .*",
    "evaluators.x.name=validation_loss": "evaluators.x.source: missing",
    "evaluators.x=3": "evaluators.x: needs a `name`; known: .*zero_shot",
}


@pytest.mark.parametrize("override", list(COMPLAINTS))
def test_each_mistake_is_named_by_its_path(base: Path, override: str) -> None:
    with pytest.raises(UserError, match=f"(?m)^  {COMPLAINTS[override]}"):
        load(TrainConfig, base, [override])


def test_all_mistakes_are_reported_at_once(base: Path) -> None:
    wrong = ["optim.lrr=1", "loss=infonc", "seed=-1", "data.workers=x"]
    with pytest.raises(UserError) as caught:
        load(TrainConfig, base, wrong)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"config {base} does not fit:"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {
        *("optim.lrr", "loss", "seed", "data.workers")
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"- 1\n", "must be a mapping of keys to values, not a list"),
        (b"a: [", "cannot be read: "),
        (b"a: \xff", "cannot be read: "),
        (b"1: 2", "1: Keys should be strings"),
        (b"false", "must be a mapping of keys to values, not a bool"),
        (b"optim:\n  lr: 1\n  lr: 2", "the key 'lr' occurs twice; keep one"),
        (b"seed: " + b"9" * 5000, "cannot be read: .*digits"),
        (b"seed: !!int", "cannot be read: "),
        (b"seed: " + b"[" * 3000 + b"]" * 3000, "cannot be read: it is nested more than 64"),
        (b"seed: &a [*a]", "cannot be read: .*a value refers to itself"),
        (
            b"".join(
                b"k%d: &x%d [%s]\n"
                % (n, n, b", ".join([b"*x%d" % (n - 1)] * 9 or [b""]) if n else b"1")
                for n in range(9)
            ),
            "cannot be read: it has more than 100,000 values",
        ),
        (b'extends: "a\\0b"', r"config '.*a\\x00b' cannot be read: embedded null"),
        (b"", "run_dir: missing"),
        (b"extends: top.yaml", "top.yaml extends itself"),
        (b"extends: loop.yaml", "top.yaml extends itself, by way of .*loop.yaml"),
        (b"extends: nowhere.yaml", "nowhere.yaml does not exist"),
        (b"extends: 5", "extends must be a path or a list of paths, not 5"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "top.yaml").write_bytes(content)
    (tmp_path / "loop.yaml").write_text("extends: [top.yaml]")
    with pytest.raises(UserError, match=complaint):
        load(TrainConfig, tmp_path / "top.yaml")


def test_a_folder_or_nothing_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist \(looked from /"):
        load(TrainConfig, tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"cannot be read: .*directory"):
        load(TrainConfig, tmp_path)


MY_LOSS = """
from clipx.config import config

@config
class Config:
    margin: float = 0.5
    def build(self): return self.margin
"""


def test_a_component_may_live_outside_of_clipx(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/triplet.py").write_text(MY_LOSS)
    (tmp_path / "my_lab/broken.py").write_text("import no_such_package\n" + MY_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    config = load(TrainConfig, base, ["loss={name: my_lab.triplet, margin: 0.25}"])
    assert config.loss.build() == 0.25
    assert to_data(config)["loss"] == {"name": "my_lab.triplet", "margin": 0.25}
    assert build(TrainConfig, to_data(config), where="itself") == config
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):  # theirs, not a wrong name
        load(TrainConfig, base, ["loss=my_lab.broken"])


def test_differences_are_dotted_paths() -> None:
    a = {"x": 1, "y": {"p": 1, "q": [1]}, "gone": 0}
    b = {"x": 1, "y": {"p": 2, "q": [2]}, "new": 0}
    assert differences(a, b) == ["y.p", "y.q", "gone", "new"]


def test_a_plan_counts_in_steps_and_names_every_bad_duration(base: Path) -> None:
    settings = ["optim.warmup=16 samples", "evaluators.x={name: zero_shot, path: p}"]
    plan = RunPlan.of(load(TrainConfig, base, settings), epoch_samples=80)
    assert (plan.total, plan.warmup, plan.evaluate_every) == (20, 2, {"x": 20})
    assert plan.cooldown == 4, "a fifth of the run, where nothing is said"
    longer = load(TrainConfig, base, ["optim.schedule={kind: wsd, cooldown: 1 epochs}"])
    assert RunPlan.of(longer, epoch_samples=80).cooldown == 10
    wrong = ["duration=soon", "log_every='5'", "evaluators.x={name: zero_shot, path: p, every: 3}"]
    with pytest.raises(UserError) as caught:
        load(TrainConfig, base, wrong)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(";")[0] for line in lines] == [
        "  duration: 'soon' is not a duration",
        "  evaluators.x.every: 3 has no unit",
        "  log_every: '5' is not a duration",
    ]
