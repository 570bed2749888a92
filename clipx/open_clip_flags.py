"""Hints for people who know open_clip_train: its common flags and the settings that do the same.

Used for flags on the command line of `clipx train`, and for unknown keys of a config that have the
name of a flag, such as `batch_size`. Needs no other module, so that hints cost no time.
"""

from __future__ import annotations

from collections.abc import Sequence

SETTINGS = {
    "accum-freq": "micro_batch_size=ROWS (local rows that are embedded at a time)",
    "batch-size": "global_batch_size={value} (over all processes; open_clip counts for each one)",
    "beta1": "optim.betas=[{value},0.98]",
    "beta2": "optim.betas=[0.9,{value}]",
    "csv-caption-key": "data.caption_field={value}",
    "csv-img-key": "data.sources.pairs.image_column={value}",
    "device": "device={value}",
    "distill-model": "objective.name=distill objective.teacher=open_clip:{value}/TAG",
    "epochs": "duration='{value} epochs'",
    "eps": "optim.eps={value}",
    "epochs-cooldown": "optim.schedule.kind=wsd optim.schedule.cooldown='{value} epochs'",
    "grad-checkpointing": "grad_checkpointing=true",
    "grad-clip-norm": "optim.clip_grad_norm={value}",
    "imagenet-val": "evaluators.imagenet.name=zero_shot evaluators.imagenet.path={value} "
    "evaluators.imagenet.classes=imagenet",
    "lock-image": "model.locked=[visual]",
    "lock-image-unlocked-groups": "model.unlocked_groups.visual={value}",
    "lock-text": "model.locked=[text]",
    "lock-text-unlocked-layers": "model.unlocked_groups.text={value}",
    "log-every-n-steps": "log_every='{value} steps'",
    "logs": "run_dir={value}/NAME",
    "lr": "optim.lr={value}",
    "lr-scheduler": "optim.schedule.kind={value} (cosine, constant or wsd)",
    "model": "model.name={value}",
    "momentum": "optim.momentum={value}",
    "name": "run_dir=runs/{value}",
    "opt": "optim.kind={value} (adamw, lamb or muon)",
    "report-to": "tensorboard=true",
    "save-frequency": "checkpoint_every='{value} epochs'",
    "seed": "seed={value}",
    "siglip": "loss=sigmoid",
    "torchcompile": "compile=towers",
    "train-data": "data.shards={value}",
    "train-num-samples": "duration='{value} samples' for the run; shards are counted by clipx",
    "val-data": "evaluators.val.name=validation_loss evaluators.val.source.name=webdataset "
    "evaluators.val.source.shards={value} (or evaluators.val.source=held_out data.held_out=0.1)",
    "warmup": "optim.warmup='{value} steps'",
    "wd": "optim.weight_decay={value}",
    "workers": "data.workers={value}",
    "zeroshot-frequency": "evaluators.NAME.every='{value} epochs'",
}
"""Flag -> setting, with {value} where the flag's value belongs."""

WITHOUT_SETTING = {
    "dataset-resampled": "every epoch contains each sample once; data.weights mixes sources",
    "dataset-type": "data.shards reads tars; data.sources={pairs: {name: table, path: FILE}} "
    "reads CSV, TSV and Parquet",
    "delete-previous-checkpoint": "keep_checkpoints=1 keeps the newest only",
    "dist-backend": "the launcher and the device decide",
    "dist-url": "the launcher sets it: torchrun, accelerate launch or srun",
    "gather-with-grad": "always so: gradients reach the rows of all processes",
    "horovod": "start by torchrun, accelerate launch or srun",
    "local-loss": "always so: each process computes its own rows of the loss",
    "resume": "the same command resumes the run of run_dir= from its newest checkpoint; to start "
    "from the weights of another run: model.initial.name=checkpoint model.initial.path=PATH",
    "save-most-recent": "always so: the newest checkpoints are kept, keep_checkpoints= of them",
    "use-bn-sync": "batch norms keep the statistics of each process; ViTs have none",
    "wandb-project-name": "TensorBoard is the only tracker: tensorboard=true",
}
"""Flag -> why it is not needed, or what is done in its place."""

SHORT_NAMES = {
    "batchsize": "batch-size",
    "betas": "beta1",
    "bs": "batch-size",
    "learning-rate": "lr",
    "num-epochs": "epochs",
    "num-workers": "workers",
    "warmup-steps": "warmup",
    "weight-decay": "wd",
    "max-epochs": "epochs",
}
"""Names in other programs -> those of open_clip."""

PRECISIONS = {
    "amp": "fp16",
    "amp_bf16": "bf16",
    "amp_bfloat16": "bf16",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "pure_bf16": "bf16",
    "pure_fp16": "fp16",
}
"""Of open_clip and torch -> that of clipx, which always keeps the weights in float32."""

WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt")


def setting_for(flag: str, value: str) -> str | None:
    """What to write in clipx instead of a flag of open_clip; None for one that is not known here.

    flag: without dashes before it, words joined by `-` or `_`; value: as it was given, or empty
    """
    name = flag.replace("_", "-").lower()
    name = SHORT_NAMES.get(name, name)
    if name == "precision":
        return precision_for(value)
    if name == "pretrained":
        return initial_for(value)
    if name == "report-to":
        return (
            "tensorboard=true" if "tensorboard" in value else WITHOUT_SETTING["wandb-project-name"]
        )
    is_table = value.lower().endswith((".csv", ".tsv", ".parquet"))
    if name == "train-data" and is_table:
        return f"data.sources.pairs.name=table data.sources.pairs.path={value}"
    if name == "val-data" and is_table:
        place = "evaluators.val.source"
        return f"evaluators.val.name=validation_loss {place}.name=table {place}.path={value}"
    if name in SETTINGS:
        return SETTINGS[name].format(value=value or "VALUE")
    return WITHOUT_SETTING.get(name)


def precision_for(value: str) -> str | None:
    """The setting for a precision of open_clip; None for one that is unknown."""
    kind = PRECISIONS.get(value, value)
    return f"precision={kind}" if kind in {*PRECISIONS.values(), "fp32"} else None


def initial_for(value: str) -> str:
    """The settings for weights that are named by a file, or by a tag of open_clip."""
    if value.lower().endswith(WEIGHT_FILES) or "/" in value:
        return f"model.initial.name=checkpoint model.initial.path={value}"
    return f"model.initial.name=pretrained model.initial.tag={value or 'TAG'}"


def explain_flags(arguments: Sequence[str]) -> list[str]:
    """One line for each flag among the arguments of `clipx train`: the flag and its setting.

    arguments: words of a command line, of which those that begin with `--` are flags
    """
    lines = []
    for number, word in enumerate(arguments):
        if not word.startswith("--") or word == "--":
            continue
        flag, equals, value = word[2:].partition("=")
        following = arguments[number + 1 : number + 2]
        # A word that is a setting or a config is no value of the flag before it.
        if not equals and following and not following[0].startswith("-"):
            is_value = "=" not in following[0] and not following[0].endswith((".yaml", ".yml"))
            value = following[0] if is_value else ""
        shown = f"--{flag} {value}".rstrip()
        hint = setting_for(flag, value)
        if hint is None:
            hint = "no setting of this name; `clipx config show CONFIG` lists all of them"
        lines.append(f"{shown}  ->  {hint}")
    return lines
