"""Samples per second of open_clip 3.3.0's own training step, with fixed batches.

    bash benchmarks/peer_env.sh
    .venv-peer/bin/python benchmarks/peer_step.py --model-json model.json --batch batch.npz \
        --precision amp_bf16 --steps 20 --warmup 3 [--context-length 16] [--attention math] \
        [--device cuda]

Runs in the peer's environment and never imports clipx: the model, loss, autocast and backward are
open_clip's, and the order of `Peer.step` is that of open_clip_train.train.train_one_epoch.

batch.npz: `image` (S, B, 3, H, W) uint8 and `text` (S, B, 77) int64; step i takes batch i mod S.
Images are normalized to float32 before the clock starts, as the peer's loader does in its workers;
for a GPU they lie in pinned memory, as there. On a GPU the clock stops after the first step of a
burst and at its end: the peer's loop does not wait for the device in every step.
The last line printed is the result in JSON.

With --serve it warms up, prints one line with `"ready": true`, then answers each line
`{"steps": n}` from stdin by one line with `step_seconds` and `losses`, until stdin ends. So a
caller can alternate two contestants in short bursts on a machine whose speed drifts.
"""

import argparse
import ctypes
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import safetensors.torch
import torch
from open_clip_train.precision import get_autocast
from open_clip_train.train import backward, unwrap_model
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

Batch = tuple[Tensor, Tensor]  # (B, 3, H, W) float32 image and (B, T) int64 text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-json", type=Path, required=True)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="safetensors with open_clip's parameter names")
    parser.add_argument("--context-length", type=int, help="tokens; default: that of the JSON")
    parser.add_argument("--precision", choices=["amp_bf16", "fp32"], default="amp_bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--attention", choices=["default", "math"], default="default")
    parser.add_argument("--compile", action="store_true", help="as the peer's --torchcompile")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--wd", type=float, default=0.2)
    parser.add_argument("--grad-clip-norm", type=float, help="default: none, as in the peer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help="answer commands from stdin")
    return parser.parse_args()


def cut(text: Tensor, length: int) -> Tensor:
    """The first `length` tokens; a text that is longer ends in its end token, as in the tokenizer.

    text: (B, T) int64 whose end token is the largest id of its row
    """
    end, position = text.max(dim=1)
    short = text[:, :length].clone()
    short[:, -1] = torch.where(position >= length, end, short[:, -1])
    return short


def load_batches(path: Path, context_length: int, device: str) -> list[Batch]:
    arrays = np.load(path)
    images, texts = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["text"])
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    batches = [
        (normalize(image.float() / 255, list(mean), list(std)), cut(text, context_length))
        for image, text in zip(images, texts, strict=True)
    ]
    if device == "cuda":
        batches = [(image.pin_memory(), text.pin_memory()) for image, text in batches]
    return batches


def build_model(args: argparse.Namespace) -> nn.Module:
    """open_clip's model in training mode; loads --init strictly.

    A table of text positions longer than the context is cut, which is exact: the text is cut too.
    """
    open_clip.add_model_config(args.model_json)
    model = open_clip.create_model(
        args.model_json.stem,
        precision=args.precision,
        device=args.device,
        force_context_length=args.context_length,
        output_dict=True,
    )
    if args.init is not None:
        weights = safetensors.torch.load_file(args.init)
        positions = weights["positional_embedding"]
        weights["positional_embedding"] = positions[: model.context_length]
        model.load_state_dict(weights)
    return model.train()


def build_optimizer(model: nn.Module, lr: float, wd: float) -> torch.optim.AdamW:
    """The two groups of open_clip_train.main and its betas and eps for a ViT."""
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or any(s in name for s in ("bn", "ln", "bias", "logit_scale"))
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": wd}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6)


@dataclass
class Peer:
    """The peer's training loop, one step at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: list[Batch]
    precision: str
    device: str
    grad_clip_norm: float | None
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.loss = open_clip.ClipLoss(cache_labels=True)  # what create_loss gives one process
        self.autocast = get_autocast(self.precision, device_type=self.device)

    def step(self) -> Tensor:
        """() the loss"""
        images, texts = (
            x.to(self.device, non_blocking=True)
            for x in self.batches[self.num_steps % len(self.batches)]
        )
        self.optimizer.zero_grad()
        with self.autocast():
            losses = self.loss(**self.model(images, texts), output_dict=True)
            total = sum(losses.values())
        backward(total, None)
        if self.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip_norm, norm_type=2.0)
        self.optimizer.step()
        with torch.no_grad():
            unwrap_model(self.model).logit_scale.clamp_(0, math.log(100))
        self.num_steps += 1
        return total.detach()

    def run(self, num_steps: int) -> dict[str, list[float]]:
        seconds, losses = [], []
        start = time.perf_counter()
        for step in range(num_steps):
            losses.append(self.step())
            if self.device == "cpu" or step in (0, num_steps - 1):
                losses[-1].item()
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
        if self.device == "cuda" and num_steps > 1:
            seconds[1:] = [seconds[1] / (num_steps - 1)] * (num_steps - 1)
        return {"step_seconds": seconds, "losses": [loss.item() for loss in losses]}


def build_peer(args: argparse.Namespace) -> Peer:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.device == "cuda":  # as open_clip_train.main
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.attention == "math":  # the names say cuda, but these switches govern the CPU too
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
    model = build_model(args)
    optimizer = build_optimizer(model, args.lr, args.wd)
    batches = load_batches(args.batch, model.context_length, args.device)
    if args.compile:  # after the optimizer, as in open_clip_train.main
        model = torch.compile(model)
    return Peer(model, optimizer, batches, args.precision, args.device, args.grad_clip_norm)


def describe(args: argparse.Namespace, peer: Peer) -> dict[str, object]:
    images, texts = peer.batches[0]
    names = ("open_clip_torch", "torch", "torchvision", "timm", "numpy")
    return {
        "precision": args.precision,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "attention": args.attention,
        "compile": args.compile,
        "threads": torch.get_num_threads(),
        "batch_size": len(images),
        "context_length": texts.shape[1],
        "versions": {name: version(name) for name in names},
    }


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def serve(peer: Peer, lines: Iterable[str]) -> None:
    for line in lines:
        answer = peer.run(json.loads(line)["steps"])
        give_back_memory()
        say(answer)


def give_back_memory() -> None:
    """What is free, to the system: it is another contestant's turn."""
    ctypes.CDLL(None).malloc_trim(0)
    torch.cuda.empty_cache()  # of nothing, where there is no GPU


def main() -> None:
    args = parse_args()
    peer = build_peer(args)
    warmup = peer.run(args.warmup)
    about = describe(args, peer)
    if args.serve:
        give_back_memory()
        say({"ready": True, **warmup, **about})
        serve(peer, sys.stdin)
        return
    result = peer.run(args.steps)
    rate = len(peer.batches[0][0]) / statistics.median(result["step_seconds"])
    losses = (warmup["losses"] + result["losses"])[:20]
    seconds = result["step_seconds"]
    say({"samples_per_second": rate, "step_seconds": seconds, "losses": losses, **about})


if __name__ == "__main__":
    main()
