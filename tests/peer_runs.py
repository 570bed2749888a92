"""A params.txt and checkpoints as open_clip_train writes them, of a tiny model of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import SigLipLoss
from tiny_runs import MODEL, write_corpus
from torch import Tensor, nn
from torch.nn import functional as F

from clipx.migrate.params import DEFAULTS

BATCH, STEPS = 6, 3


def write_params(folder: Path, **changes: Any) -> Path:
    """As the trainer does: sorted, `name: value` by str, with what it adds to the flags."""
    values: dict[str, Any] = DEFAULTS | {
        "name": "peer-run",
        "train_data": "data/{00..03}.tar",
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "warmup": 5,
        "epochs": 4,
        "batch_size": BATCH,
        "precision": "fp32",
        "device": "cpu",
    }
    values |= {"rank": 0, "world_size": 1, "distributed": False, "log_level": 20, "wandb": False}
    values |= changes
    file = folder / "params.txt"
    file.write_text("".join(f"{name}: {values[name]}\n" for name in sorted(values)))
    return file


def write_model(folder: Path, **changes: Any) -> str:
    """The name of a model in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": MODEL | changes, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


def write_run(folder: Path, *, epochs: int) -> tuple[Path, Path]:
    """(params.txt, checkpoint) of a run on 30 samples that has done the first of its epochs. It
    validates on 10 samples."""
    corpus = write_corpus(folder / "corpus", samples=30, shards=3)
    held_out = write_corpus(folder / "held_out", samples=10, shards=1)
    name = write_model(folder / "model")
    params = write_params(
        folder,
        model=name,
        train_data=f"{corpus}/{{00..02}}.tar",
        val_data=f"{held_out}/00.tar",
        workers=0,
        epochs=epochs,
        warmup=2,
        log_every_n_steps=1,
    )
    return params, PeerRun(name).save(folder / "epoch_1.pt", prefix="module.")


class PeerRun:
    """A model of open_clip and its optimizer after some steps on random batches.

    model: CLIP, or CustomTextCLIP with custom_text; optimizer: AdamW with the trainer's two groups
    """

    def __init__(self, name: str, *, locked: tuple[int, int] | None = None, **options: Any) -> None:
        """locked: (unlocked groups of the image tower, unlocked layers of the text tower)"""
        torch.manual_seed(5)
        self.model: Any = open_clip.create_model(
            name, load_weights=False, output_dict=True, **options
        )
        if locked is not None:
            self.model.lock_image_tower(unlocked_groups=locked[0])
            self.model.lock_text_tower(unlocked_layers=locked[1])
        spared, others = [], []
        for name_, p in self.model.named_parameters():
            is_spared = p.ndim < 2 or any(s in name_ for s in ("bn", "ln", "bias", "logit_scale"))
            if p.requires_grad:
                (spared if is_spared else others).append(p)
        groups = [{"params": spared, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.2}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
        for number in range(STEPS):
            self.step(*batch(number))

    def step(self, image: Tensor, text: Tensor) -> float:
        out = self.model(image, text)
        if out.get("logit_bias") is None:
            logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
            labels = torch.arange(len(image))
            loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        else:
            loss = SigLipLoss()(**out)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def save(self, file: Path, *, prefix: str = "", **changes: Any) -> Path:
        """prefix: of the names of weights, as wrappers put it before them"""
        weights = {prefix + name: tensor for name, tensor in self.model.state_dict().items()}
        content = {
            "epoch": 1,
            "name": "peer-run",
            "state_dict": weights,
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(content | changes, file)
        return file


def batch(number: int) -> tuple[Tensor, Tensor]:
    """(BATCH, 3, 32, 32) normalized images, (BATCH, 16) tokens that begin and end as CLIP's do"""
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(BATCH, 3, 32, 32, generator=generator)
    text = torch.randint(1, 49000, (BATCH, 16), generator=generator)
    text[:, 0] = 49406
    text[:, 9] = 49407
    text[:, 10:] = 0
    return image, text


def named(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}
