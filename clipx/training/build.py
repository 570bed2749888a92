"""Build the large parts of a run: the model with its initial weights, its batches, its step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.saver import Saver
from clipx.data.corpus import Corpus
from clipx.data.loader import BatchSource
from clipx.data.preprocessing import Preprocessing
from clipx.data.reinforcement import read_manifest
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.runtime import Runtime
from clipx.distributed.wrap import wrap
from clipx.models.dual_encoder import DualEncoder, ModelConfig
from clipx.models.locked import split_locked
from clipx.objectives.objective import Parts
from clipx.training.cached_features import feature_batches
from clipx.training.config import RunPlan, TrainConfig
from clipx.training.corpus import corpus_messages, pixel_batches
from clipx.training.ema import Ema
from clipx.training.interruption import Stop
from clipx.training.learner import Learner
from clipx.training.optim import build_optimizer
from clipx.training.precision import Precision
from clipx.training.run_folder import RunFolder
from clipx.training.teachers import load_teacher


def new_encoder(
    model: ModelConfig, model_json: dict[str, Any], runtime: Runtime, *, seed: int
) -> tuple[DualEncoder, list[str]]:
    """Build the model with its initial weights, and seed torch's generator for that. Returns it
    with messages for the log."""
    torch.manual_seed(seed)
    initial = model.build_initial()
    if initial is not None:
        # One rank downloads, and the others find the files in the cache.
        runtime.main_first(initial.prepare)
    encoder = DualEncoder(model_json)
    if initial is None:
        # Even so, towers of transformers and timm may bring weights of their own.
        text = model_json["text_cfg"]
        image = model_json["vision_cfg"]
        names = []
        if text.get("hf_model_name") and text.get("hf_model_pretrained", True):
            names.append(f"text {text['hf_model_name']}")
        if image.get("timm_model_name") and image.get("timm_model_pretrained"):
            names.append(f"image {image['timm_model_name']}")
        pretrained = f", with the pretrained tower {' and '.join(names)}" if names else ""
        messages = [f"weights: random, seed {seed}{pretrained}"]
    else:
        messages = [f"weights: {initial.source}", *initial.load(encoder)]
    encoder.lock(model.locked, model.unlocked_groups)
    return encoder, messages


def build_source(
    config: TrainConfig,
    runtime: Runtime,
    stop: Stop,
    corpus: Corpus,
    encoder: DualEncoder,
    model_json: dict[str, Any],
    dtype: torch.dtype,
) -> tuple[BatchSource, DualEncoder, Callable[[Tensor], Tensor]]:
    """(batches, the model that takes them, how their images are normalized on the device)"""
    share = {"rank": runtime.rank, "world_size": runtime.world_size}
    if config.cache_features is None:
        batches = pixel_batches(config, corpus, model_json, **share)
        return batches, encoder, Preprocessing.of(model_json)
    # The locked trunks run once over the corpus; steps see their features and train the heads.
    split = split_locked(encoder, model_json)
    batches = feature_batches(config, runtime, stop, corpus, split, model_json, dtype)
    return batches, split.heads, lambda features: features


def compile_towers(encoder: DualEncoder, *, backend: Any = "inductor") -> None:
    """torch.compile for both towers, in place, so that parameters keep their names.

    Whatever lengths captions have, the text tower is compiled twice: at the second length dynamo
    makes it a variable of the graph. Micro-batches double that, since they run with and without
    gradients. The loss is a few large matmuls and collectives, so it is not compiled.

    backend: a name that torch knows, or a function
    """
    encoder.visual.compile(backend=backend)
    encoder.text.compile(backend=backend)


def build_learner(
    config: TrainConfig,
    runtime: Runtime,
    encoder: DualEncoder,
    trained: DualEncoder,
    precision: Precision,
    *,
    model_json: dict[str, Any],
    num_samples: int,
    normalize: Callable[[Tensor], Tensor],
) -> Learner:
    """encoder: the whole model; trained: what steps run: all of it, or its heads"""
    # Both change blocks, so they come before `wrap` shards these or copies them.
    if config.grad_checkpointing:
        trained.set_grad_checkpointing(True)
    if config.compile == "towers":
        compile_towers(trained)
    tokenizer = build_tokenizer(model_json["text_cfg"])
    stored_teacher = None
    if config.data.reinforced is not None:
        stored_teacher = read_manifest(Path(config.data.reinforced)).teacher
    parts = Parts(
        trained,
        model_json["embed_dim"],
        config.loss.build(),
        normalize,
        seed=config.seed,
        pad_id=tokenizer.pad_id,
        queue=config.pool.queue,
        num_samples=num_samples,
        vocab_size=tokenizer.largest_id + 1,
        special_ids=tokenizer.special_ids,
        load_teacher=partial(
            load_teacher, student=model_json, runtime=runtime, dtype=precision.dtype
        ),
        stored_teacher=stored_teacher,
    )
    torch.manual_seed(config.seed + 1)  # of an objective's own weights
    objective = config.objective.build(parts).to(runtime.device)
    objective.lock_unused()
    model = wrap(objective, runtime, parallel=config.parallel, dtype=precision.dtype)
    return Learner(
        runtime=runtime,
        encoder=encoder,
        objective=objective,
        model=model,
        # After `wrap`, which replaces parameters by shards.
        optimizer=build_optimizer(
            trained, config.optim, objective.own_parameters(), objective.whole_parameters()
        ),
        precision=precision,
        ema=Ema(encoder, config.ema) if config.ema is not None else None,
    )


def build_saver(
    config: TrainConfig,
    plan: RunPlan,
    learner: Learner,
    folder: RunFolder | None,
    model_json: dict[str, Any],
    *,
    newest: int | None,
) -> Saver:
    """folder: on rank 0; newest: the step of the checkpoint that the run continues from"""
    # Checkpoints describe themselves: each has the model's JSON, the config and the versions.
    about = checkpoints.About(
        model_json,
        keep=config.keep_checkpoints,
        keep_every=plan.keep_every,
        texts=folder.texts if folder else {},
    )
    return Saver(
        learner.runtime,
        learner,
        folder.checkpoints if folder else None,
        about,
        newest=newest,
        every_seconds=plan.checkpoint_seconds,
        asynchronous=config.save_async,
    )


def describe(config: TrainConfig, plan: RunPlan, corpus: Corpus, learner: Learner) -> str:
    """What a run is about to do, in a few lines."""
    size = config.global_batch_size
    runtime = learner.runtime
    num_parameters = sum(p.numel() for p in learner.encoder.parameters())
    text = (
        f"{corpus.num_samples:,} pairs in {corpus.num_shards} shards, "
        f"{plan.total:,} steps of {size}, "
        f"{num_parameters / 1e6:.1f}M parameters, "
        f"{runtime.world_size} x {runtime.device.type}{learner.model.title}, "
        f"{str(learner.precision.dtype).removeprefix('torch.')}"
    )
    return "\n".join([text, *corpus_messages(corpus, size)])
