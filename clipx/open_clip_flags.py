"""The flags of open_clip_train: the settings that do the same, or why there is none.

Used for flags on the command line of `clipx train`, for unknown keys of a config that have the name
of a flag, such as `batch_size`, and by `clipx import`. docs/migrate.md shows all flags. Needs no
other module, so that hints cost no time.
"""

from __future__ import annotations

from collections.abc import Sequence

SETTINGS = {
    "accum_freq": "micro_batch_size=ROWS (local rows that are embedded at a time)",
    "batch_size": "global_batch_size={value} (over all processes; open_clip counts for each one)",
    "beta1": "optim.betas=[{value},0.98]",
    "beta2": "optim.betas=[0.9,{value}]",
    "csv_caption_key": "data.caption_field={value}",
    "csv_img_key": "data.sources.pairs.image_column={value}",
    "delete_previous_checkpoint": "keep_checkpoints=1 (the newest only)",
    "device": "device={value}",
    "distill_model": "objective.name=distill objective.teacher=open_clip:{value}/TAG",
    "epochs": "duration='{value} epochs'",
    "eps": "optim.eps={value}",
    "epochs_cooldown": "optim.schedule.kind=wsd optim.schedule.cooldown='{value} epochs'",
    "grad_checkpointing": "grad_checkpointing=true",
    "grad_clip_norm": "optim.clip_grad_norm={value}",
    "imagenet_val": "evaluators.imagenet.name=zero_shot evaluators.imagenet.path={value} "
    "evaluators.imagenet.classes=imagenet",
    "lock_image": "model.locked=[visual]",
    "lock_image_unlocked_groups": "model.unlocked_groups.visual={value}",
    "lock_text": "model.locked=[text]",
    "lock_text_unlocked_layers": "model.unlocked_groups.text={value}",
    "log_every_n_steps": "log_every='{value} steps'",
    "logs": "run_dir={value}/NAME",
    "lr": "optim.lr={value}",
    "lr_scheduler": "optim.schedule.kind={value} (cosine, constant or wsd)",
    "model": "model.name={value}",
    "momentum": "optim.momentum={value}",
    "name": "run_dir=runs/{value}",
    "opt": "optim.kind={value} (adamw, lamb or muon)",
    "precision": "precision={value}",
    "report_to": "tensorboard=true",
    "save_frequency": "checkpoint_every='{value} epochs'",
    "seed": "seed={value}",
    "siglip": "loss=sigmoid",
    "torchcompile": "compile=towers",
    "train_data": "data.shards={value}",
    "val_data": "evaluators.val.name=validation_loss evaluators.val.source.name=webdataset "
    "evaluators.val.source.shards={value} (or evaluators.val.source=held_out data.held_out=0.1)",
    "warmup": "optim.warmup='{value} steps'",
    "wd": "optim.weight_decay={value}",
    "workers": "data.workers={value}",
    "zeroshot_frequency": "evaluators.NAME.every='{value} epochs'",
}
"""Flag -> setting, with {value} where the flag's value belongs."""

REASONS = {
    "train_num_samples": "the index of the shards counts samples",
    "val_num_samples": "the index of the shards counts samples",
    "dataset_type": "data.shards reads tars; data.sources={pairs: {name: table, path: FILE}} reads "
    "CSV, TSV and Parquet",
    "dataset_resampled": "an epoch has each sample once, in an order that resumes exactly",
    "cache_dir": "HF_HOME is the cache of the hub, XDG_CACHE_HOME that of clipx",
    "log_local": "rank 0 writes the logs",
    "use_bn_sync": "batch norms have the statistics of their rank; model.locked keeps them fixed",
    "save_most_recent": "every checkpoint is written whole or not at all, and the newest resumes",
    "resume": "the same command resumes from the newest checkpoint in run_dir; the weights of "
    "another run are model.initial={name: checkpoint, path: PATH}",
    "lock_image_freeze_bn_stats": "locked parts always keep their statistics",
    "lock_text_freeze_layer_norm": "layer norms of locked parts are locked",
    "local_loss": "pools always compare local rows with global columns",
    "gather_with_grad": "gradients always cross ranks",
    "force_custom_text": "every model has its text tower apart",
    "torchscript": "compile=towers is what pays in training",
    "trace": "it is for evaluation, which is `clipx eval`",
    "dist_url": "torchrun, accelerate and SLURM set the address",
    "dist_backend": "nccl on GPUs, gloo on CPUs",
    "wandb_notes": "metrics go to JSON lines, and with tensorboard=true to TensorBoard",
    "wandb_project_name": "metrics go to JSON lines, and with tensorboard=true to TensorBoard",
    "debug": "a log line has all figures",
    "copy_codebase": "version.json has the commit of each start",
    "horovod": "ranks are started by torchrun, accelerate or SLURM",
    "ddp_static_graph": "the graph of a step is found anew in each step",
    "no_set_device_rank": "with one visible GPU a process takes that one",
    "coca_caption_loss_weight": "CoCa is not trained here",
    "coca_contrastive_loss_weight": "CoCa is not trained here",
    "remote_sync": "synchronize run_dir with a program of your own; a checkpoint is one folder",
    "remote_sync_frequency": "see --remote-sync",
    "remote_sync_protocol": "see --remote-sync",
    "use_bnb_linear": "weights are float32",
}
"""Flag -> why it has no setting, or what is done in its place."""

SHORT_NAMES = {
    "batchsize": "batch_size",
    "betas": "beta1",
    "bs": "batch_size",
    "learning_rate": "lr",
    "num_epochs": "epochs",
    "num_workers": "workers",
    "warmup_steps": "warmup",
    "weight_decay": "wd",
    "max_epochs": "epochs",
}
"""Names in other programs -> those of open_clip."""

VALUES = {
    "lr_scheduler": {"cosine": "cosine", "const": "constant", "const-cooldown": "wsd"},
    "opt": {"adamw": "adamw", "timm/adamw": "adamw", "timm/lamb": "lamb", "timm/muon": "muon"},
    "precision": {
        "amp": "fp16",
        "fp16": "fp16",
        "pure_fp16": "fp16",
        "amp_bf16": "bf16",
        "amp_bfloat16": "bf16",
        "bf16": "bf16",
        "pure_bf16": "bf16",
        "fp32": "fp32",
        "float16": "fp16",  # this and the next two are names of torch
        "bfloat16": "bf16",
        "float32": "fp32",
    },
}
"""Flag -> its values and those of the setting. Weights are float32 in each precision of clipx."""

WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt")


def setting_for(flag: str, value: str) -> str | None:
    """What to write in clipx instead of a flag of open_clip; None for one that is not known here.

    flag: without dashes before it, words joined by `-` or `_`; value: as it was given, or empty
    """
    name = flag.replace("-", "_").lower()
    name = SHORT_NAMES.get(name, name)
    value = VALUES.get(name, {}).get(value, value)
    if name == "pretrained":
        return initial_for(value)
    if name == "report_to" and "tensorboard" not in value:
        return REASONS["wandb_project_name"]
    is_table = value.lower().endswith((".csv", ".tsv", ".parquet"))
    if name == "train_data" and is_table:
        return f"data.sources.pairs.name=table data.sources.pairs.path={value}"
    if name == "val_data" and is_table:
        place = "evaluators.val.source"
        return f"evaluators.val.name=validation_loss {place}.name=table {place}.path={value}"
    if name in SETTINGS:
        return SETTINGS[name].format(value=value or "VALUE")
    return REASONS.get(name)


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
