"""The flags of open_clip_train in a params.txt become the settings of a run that loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from peer_runs import write_model, write_params

from clipx.cli import main
from clipx.config import load
from clipx.migrate.params import DEFAULTS, read_params
from clipx.migrate.run import import_run
from clipx.migrate.settings import SAME_HERE
from clipx.open_clip_flags import REASONS
from clipx.training.config import TrainConfig
from clipx.types import UserError


def imported(folder: Path, **changes: Any) -> tuple[TrainConfig, list[str]]:
    """The config, loaded from the file that was written, and what was printed."""
    changes = {"model": "ViT-B-32"} | changes
    lines = import_run(write_params(folder, **changes), None, folder / "run")
    return load(TrainConfig, folder / "run/train.yaml"), lines


def test_the_flags_of_a_common_run(tmp_path: Path) -> None:
    config, lines = imported(
        tmp_path,
        batch_size=256,
        world_size=8,
        accum_freq=2,
        local_loss=True,
        gather_with_grad=True,
        precision="amp_bf16",
        device="cuda:0",
        workers=6,
        warmup=2000,
        wd=0.1,
        grad_clip_norm=1.5,
        seed=3,
        grad_checkpointing=True,
        torchcompile=True,
        report_to="tensorboard",
        log_every_n_steps=50,
        save_frequency=2,
    )
    assert config.global_batch_size == 256 * 8 * 2
    assert config.micro_batch_size == 256
    assert config.data.shards == "data/{00..03}.tar"
    assert config.data.caption_field == "txt"
    assert config.data.workers == 6
    assert config.duration == "4 epochs"
    assert (config.precision, config.device, config.compile) == ("bf16", "auto", "towers")
    assert (config.seed, config.grad_checkpointing, config.tensorboard) == (3, True, True)
    assert config.optim.warmup == "2000 steps"
    assert (config.optim.lr, config.optim.betas, config.optim.eps) == (1e-3, (0.9, 0.98), 1e-6)
    assert (config.optim.weight_decay, config.optim.clip_grad_norm) == (0.1, 1.5)
    assert config.optim.schedule.kind == "cosine"
    assert (config.checkpoint_every, config.keep_every) == ("2 epochs", "2 epochs")
    assert config.log_every == "50 steps"
    assert config.model.name == "ViT-B-32"
    assert not (tmp_path / "run/model.json").exists()
    assert not [line for line in lines if line.startswith("note")]


def test_clipping_is_off_where_it_was_off(tmp_path: Path) -> None:
    config, _ = imported(tmp_path)
    assert config.optim.clip_grad_norm is None, "the default of clipx is 1.0"


def test_flags_of_the_model_make_a_json_beside_the_config(tmp_path: Path) -> None:
    config, _ = imported(
        tmp_path,
        siglip=True,
        force_image_size=[160],
        force_context_length=32,
        force_patch_dropout=0.5,
        force_quick_gelu=True,
        image_mean=[0.5],
        image_std=[0.2, 0.3, 0.4],
        image_resize_mode="squash",
        lock_image=True,
        lock_image_unlocked_groups=2,
    )
    assert config.model.name == str(tmp_path / "run/model.json")
    model = config.model.read()
    assert (model["vision_cfg"]["image_size"], model["vision_cfg"]["patch_dropout"]) == (160, 0.5)
    assert (model["text_cfg"]["context_length"], model["quick_gelu"]) == (32, True)
    assert (model["init_logit_scale"], model["init_logit_bias"]) == (math.log(10), -10.0)
    stored = json.loads((tmp_path / "run/model.json").read_text())["preprocess_cfg"]
    assert stored == {"mean": 0.5, "std": [0.2, 0.3, 0.4], "resize_mode": "squash"}
    assert type(config.loss).__module__ == "clipx.losses.sigmoid"
    assert config.model.locked == ["visual"]
    assert config.model.unlocked_groups == {"visual": 2}


def test_trunks_of_timm_and_transformers_are_locked_without_their_heads(tmp_path: Path) -> None:
    (tmp_path / "timm").mkdir()
    config, lines = imported(tmp_path / "timm", model="ViT-B-16-SigLIP", lock_image=True)
    assert config.model.locked == ["visual.trunk"]
    assert any("without --lock-image-freeze-bn-stats" in line for line in lines)
    locks = {"model": "roberta-ViT-B-32", "lock_text": True, "lock_text_unlocked_layers": 2}
    with pytest.raises(UserError, match="open_clip trained the layer norms"):
        imported(tmp_path, **locks)
    config, _ = imported(tmp_path, **locks, lock_text_freeze_layer_norm=True)
    assert config.model.locked == ["text.transformer"]
    assert config.model.unlocked_groups == {"text": 2}


def test_a_table_with_validation_and_zero_shot(tmp_path: Path) -> None:
    config, _ = imported(
        tmp_path,
        train_data="train.csv",
        val_data="val.csv",
        val_frequency=2,
        csv_separator=",",
        csv_img_key="path",
        csv_caption_key="text",
        imagenet_val="/data/imagenet/val",
        zeroshot_frequency=3,
    )
    source = config.data.sources["train"]
    assert (source.path, source.image_column, source.separator) == ("train.csv", "path", ",")
    assert source.image_root == ".", "paths start where open_clip was started"
    assert config.data.caption_field == "text"
    val = config.evaluators["val"]
    assert (val.source.path, val.caption_field, val.every) == ("val.csv", "text", "2 epochs")
    assert val.batch_size == 6
    imagenet = config.evaluators["imagenet"]
    assert (imagenet.path, imagenet.templates, imagenet.every) == (
        "/data/imagenet/val",
        "openai",
        "3 epochs",
    )


def test_a_tab_is_read_as_the_separator(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, train_data="train.csv")
    assert config.data.sources["train"].separator == "\t"


def test_a_cooldown_of_the_learning_rate(tmp_path: Path) -> None:
    config, lines = imported(
        tmp_path,
        lr_scheduler="const-cooldown",
        epochs_cooldown=1,
        lr_cooldown_end=1e-4,
        lr_cooldown_power=2.0,
    )
    schedule = config.optim.schedule
    assert (schedule.kind, schedule.cooldown, schedule.cooldown_shape) == (
        "wsd",
        "1 epochs",
        "linear",
    )
    assert schedule.min_lr_fraction == pytest.approx(0.1)
    assert any("--lr-cooldown-power 2.0" in line for line in lines)


def test_without_a_scheduler_the_rate_is_constant_from_the_first_step(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, skip_scheduler=True)
    assert (config.optim.schedule.kind, config.optim.warmup) == ("constant", "1 steps")


def test_upsampling_factors_are_repetitions(tmp_path: Path) -> None:
    changes = {"train_data": "a.tar::b.tar", "dataset_type": "webdataset"}
    config, lines = imported(tmp_path, train_data_upsampling_factors="0.5::1.5", **changes)
    assert config.data.repeat == {"part_0": 1, "part_1": 3}
    assert config.data.sources["part_1"].shards == "b.tar"
    assert any("drew shards at random" in line for line in lines)


def test_weights_and_augmentations(tmp_path: Path) -> None:
    config, lines = imported(
        tmp_path,
        pretrained="laion2b_s34b_b79k",
        aug_cfg={"scale": (0.4, 1.0), "color_jitter": 0.3, "re_prob": 0.2},
    )
    assert config.model.initial.tag == "laion2b_s34b_b79k"
    assert config.data.crop_scale == (0.4, 1.0)
    assert config.data.color_jitter == (0.3, 0.3, 0.3, 0.0)
    assert config.data.color_jitter_prob == 0, "open_clip changes no color without it"
    unused = "--aug-cfg re_prob has no effect in open_clip without use_timm and is left out"
    assert any(unused in line for line in lines)
    assert config.data.erase_prob == 0
    assert not config.data.exif_orientation


def test_augmentations_through_timm(tmp_path: Path) -> None:
    """Which takes the ratio, jitters each picture, and erases; its own two entries it drops."""
    augmentation = {
        "use_timm": True,
        "scale": (0.2, 1.0),
        "ratio": (0.5, 2.0),
        "color_jitter": (0.4, 0.3, 0.2),
        "re_prob": 0.25,
        "re_count": 3,
        "color_jitter_prob": 0.8,
    }
    config, lines = imported(tmp_path, aug_cfg=augmentation)
    data = config.data
    assert (data.crop_scale, data.crop_ratio) == ((0.2, 1.0), (0.5, 2.0))
    assert (data.color_jitter, data.color_jitter_prob) == ((0.4, 0.3, 0.2, 0.0), 1.0)
    assert (data.erase_prob, data.gray_scale_prob) == (0.25, 0.0)
    for note in (
        "--aug-cfg re_count has no setting and is left out",
        "--aug-cfg color_jitter_prob has no effect in open_clip with use_timm and is left out",
    ):
        assert any(note in line for line in lines)
    assert not any("use_timm has" in line for line in lines)


def test_a_teacher_is_the_objective(tmp_path: Path) -> None:
    config, _ = imported(tmp_path, distill_model="ViT-L-14", distill_pretrained="openai")
    assert config.objective.teacher == "open_clip:ViT-L-14/openai"


@pytest.mark.parametrize("flag", sorted(set(REASONS) - set(SAME_HERE)))
def test_a_flag_without_a_setting_is_named_with_the_reason(tmp_path: Path, flag: str) -> None:
    default = DEFAULTS[flag]
    value = True if default is False else 7 if isinstance(default, int) else "something"
    if isinstance(default, float):
        value = 7.0
    _, lines = imported(tmp_path, **{flag: value})
    named = f"note: --{flag.replace('_', '-')} has no setting: {REASONS[flag]}"
    assert [line for line in lines if line.startswith("note")] == [named]


def test_several_ranks_without_gradient_through_the_gather_are_told_apart(tmp_path: Path) -> None:
    _, lines = imported(tmp_path, world_size=2)
    assert any("Without both --local-loss and --gather-with-grad" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-B-33"}, "did you mean ViT-B-32"),
        ({"model": "coca_ViT-B-32"}, "is a CoCa"),
        ({"opt": "timm/lion"}, "--opt timm/lion: clipx has adamw, lamb and muon"),
        ({"precision": "int8"}, "--precision int8 is none of amp"),
        ({"lr_scheduler": "linear"}, "--lr-scheduler linear is none of cosine"),
        ({"train_data": None}, "`clipx eval` is the verb"),
        ({"train_data": "a.zip"}, "neither webdataset, csv nor synthetic"),
        ({"force_image_size": [224, 160]}, "is not square"),
        ({"batch_size": 0}, "batch_size is 0 instead of a whole number from 1 on"),
        ({"batch_size": "many", "lr": "fast"}, "lr is 'fast' instead of a number"),
        ({"siglip": "yes"}, "siglip is 'yes' instead of True or False"),
        ({"world_size": 0}, "world_size is 0"),
        ({"train_data_upsampling_factors": "1::2"}, "must be 1 numbers above 0"),
        ({"train_data_upsampling_factors": "a"}, "are no numbers"),
    ],
)
def test_odd_values_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        imported(tmp_path, **changes)
    assert not (tmp_path / "run").exists()


def test_factors_that_are_no_multiples_need_weights(tmp_path: Path) -> None:
    changes = {"train_data": "a.tar::b.tar", "train_data_upsampling_factors": "1::1.5"}
    with pytest.raises(UserError, match=r"set data\.weights"):
        imported(tmp_path, **changes)


def test_files_that_are_no_params_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "params.txt"
    with pytest.raises(UserError, match=r"params\.txt cannot be read: No such file"):
        read_params(file)
    file.write_text("lr: 1\n")
    with pytest.raises(UserError, match="has no model, batch_size, epochs: it is not the"):
        read_params(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_params(file)


def test_a_file_of_another_version_is_read_with_defaults_and_a_note(tmp_path: Path) -> None:
    file = tmp_path / "params.txt"
    file.write_text(
        "model: ViT-B-32\nbatch_size: 8\nepochs: 2\ntrain_data: a.tar\nlr: 0.001\nfuture_flag: 3\n"
        "name: 7\n"
    )
    params = read_params(file)
    assert (params["wd"], params["name"]) == (0.2, "7")
    lines = import_run(file, None, tmp_path / "run")
    assert any("not flags of open_clip_train 3.3.0: future_flag" in line for line in lines)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder; give another with --out"):
        imported(tmp_path)


def test_the_command_prints_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_params(tmp_path, model=write_model(tmp_path / "model"), name="my/run")
    main(["import", "open_clip", "--params", str(params)])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "runs/my-run/train.yaml is the config"
    assert out[-1] == "go on with: clipx train runs/my-run/train.yaml"
    assert "the run starts anew" in out[-2]
    assert load(TrainConfig, Path("runs/my-run/train.yaml")).run_dir == "runs/my-run"
    with pytest.raises(SystemExit):
        main(["import", "open_clip", "--params", str(params)])
    assert "not an empty folder" in capsys.readouterr().err
