"""Settings of a run and the files that they name: any value ends in a config or in one message."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import Fuzz
from hypothesis import strategies as st
from samples import write_corpus
from small_checkpoints import MODEL

from clipx import cli
from clipx.config import build, load, merge, to_yaml
from clipx.data.augment import NUM_DRAWS, augment
from clipx.data.preprocessing import Preprocessing
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed import launcher
from clipx.distributed.pool import build_pool
from clipx.models.dual_encoder import DualEncoder
from clipx.models.model_json import read_model_json
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.optim import build_optimizer
from clipx.training.schedule import rate
from clipx.types import UserError

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([64, 10**6, 2**31, 2**53, 2**63, 10**22, -(10**22), 16**3000]),
    st.floats(),
)
WORDS = st.sampled_from(
    [
        *("", " ", "a\0b", "\ud800", "..", "/dev/null", "~", "a" * 5000, "0x" + "f" * 5000),
        *("{0..99}", "{a,b}" * 40, "{0..999999999999}", "{0..9}" * 30, "shards/{000..127}.tar"),
        *("3 epochs", "2000 steps", "1e3 steps", "9" * 400 + " steps", "inf steps", "0 samples"),
        *("inf", "nan", "1e400", "23h30m", "-5 s", "9" * 400 + " days", "2024-99-99", "yes"),
        *("infonce", "sigmoid", "zero_shot", "os.path", "webdataset", "folder", "none", "auto"),
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=20))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | SCALARS, inner, max_size=4),
    max_leaves=6,
)


def settings(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a config class."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")


PATHS = [*settings(TrainConfig), "data.sources.x.name", "loss.name", "model.initial.name", "no.key"]


def nested(path: str, value: Any) -> Any:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def test_config_values(fuzz: Fuzz, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    base = {
        "run_dir": str(tmp_path / "run"),
        "data": {"shards": str(tmp_path / "corpus"), "workers": 0},
        "model": {"name": "ViT-B-32"},
        "duration": "10 steps",
        "global_batch_size": 4,
    }
    changes = st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=3)
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    encoder = DualEncoder(MODEL)

    def check(change: list[tuple[str, Any]]) -> None:
        data: dict[str, Any] = base
        for path, value in change:
            data = merge(data, nested(path, value))
        with contextlib.suppress(UserError):
            config = build(TrainConfig, data, where="fuzz")
            to_yaml(config)
            plan = RunPlan.of(config, 1000)
            for step in {0, plan.total // 2, plan.total - 1}:
                share = rate(config.optim.schedule, step, plan.total, plan.warmup, plan.cooldown)
                assert 0 <= share <= 1
            build_optimizer(encoder, config.optim)
            build_pool(config.pool, world_size=1)
            config.loss.build()
            draws = torch.rand(NUM_DRAWS).numpy()
            augment(image, 16, config.data.augmentation, draws)
            if config.data.sources == {} and config.data.shards == base["data"]["shards"]:
                config.data.open(seed=config.seed).order.locate(torch.arange(8).numpy())

    fuzz(changes, check)


def test_override_text(fuzz: Fuzz) -> None:
    keys = st.sampled_from(PATHS) | st.text(max_size=8) | st.just(".".join("a" * 5000))
    values = WORDS | st.text(max_size=20) | NUMBERS.map(str)

    def check(override: tuple[str, str]) -> None:
        with contextlib.suppress(UserError):
            load(TrainConfig, None, ["=".join(override)])

    fuzz(st.tuples(keys, values), check)


VISION = [
    *MODEL["vision_cfg"],
    "mlp_ratio",
    "patch_dropout",
    "pool_type",
    "timm_model_name",
    "no_ln_pre",
]
TEXT = [
    *MODEL["text_cfg"],
    "mlp_ratio",
    "pool_type",
    "embed_cls",
    "no_causal_mask",
    "tokenizer_kwargs",
]
MODEL_PATHS = [
    *("embed_dim", "quick_gelu", "init_logit_scale", "init_logit_bias", "vision_cfg", "text_cfg"),
    *("preprocess_cfg.mean", "preprocess_cfg.std", "preprocess_cfg.resize_mode", "preprocess_cfg"),
    *("preprocess_cfg.interpolation", "preprocess_cfg.fill_color", "model_cfg"),
    *(f"vision_cfg.{key}" for key in VISION),
    *(f"text_cfg.{key}" for key in TEXT),
]
SMALL = MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": 49408}}


def test_model_json(fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    changes = st.lists(st.tuples(st.sampled_from(MODEL_PATHS), VALUES), min_size=1, max_size=2)

    def check(change: list[tuple[str, Any]]) -> None:
        data: dict[str, Any] = SMALL
        for path, value in change:
            data = merge(data, nested(path, value))
        with contextlib.suppress(TypeError):  # keys that JSON has not
            file.write_text(json.dumps(data))
        with contextlib.suppress(UserError):
            cfg = read_model_json(str(file))
            size = cfg["vision_cfg"]["image_size"]
            Preprocessing.of(cfg).fit(torch.zeros(3, 9, 7, dtype=torch.uint8), min(size, 64))
            build_tokenizer(cfg["text_cfg"])
            with torch.device("meta"):
                model = DualEncoder(cfg)  # no memory: sizes may be large
            if sum(p.numel() for p in model.parameters()) < 2**21 and size <= 64:
                DualEncoder(cfg).encode_image(torch.zeros(2, 3, size, size))

    fuzz(changes, check)


def test_launcher_environment(fuzz: Fuzz) -> None:
    names = [
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
        *("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "OMP_NUM_THREADS"),
    ]
    values = st.sampled_from(
        ["0", "1", "2", "abc", "-1", "", "1e9", "9" * 30, "2(x3)", "127.0.0.1"]
    )

    def check(environment: dict[str, str]) -> None:
        with contextlib.suppress(UserError):
            launcher.adopt_srun(environment)
            launcher.check(environment, gloo=False)
            launcher.check_devices(environment, visible=0)

    fuzz(st.dictionaries(st.sampled_from(names), values | st.text(max_size=5)), check)


def test_the_command_line_ends_with_one_message(
    fuzz: Fuzz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("run_dir: a\ndata: {shards: b}\nmodel: {name: c}\nduration: 1 step\n")
    keys = st.sampled_from(PATHS) | st.text(max_size=8)
    texts = st.tuples(keys, WORDS | st.text(max_size=20) | NUMBERS.map(str)).map("=".join)
    overrides = texts.filter(lambda text: not text.startswith("-"))  # an option of argparse

    def check(override: str) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["config", "show", str(base), override, "global_batch_size=0"])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("clipx: ") or "clipx: error: unrecognized arguments" in said
        assert "Traceback" not in said

    fuzz(overrides, check)
