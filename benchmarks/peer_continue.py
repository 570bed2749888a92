"""Train with open_clip 3.3.0's own trainer, and record the first batches and losses of its second
epoch, for benchmarks/continue_open_clip.py.

    .venv-peer/bin/python benchmarks/peer_continue.py RECORD.pt STEPS FLAGS OF open_clip_train.main

Runs in the peer's environment and never imports clipx. The trainer writes its checkpoint after the
first epoch and trains on without a break. Its second epoch ends after STEPS batches; the schedule
is that of the whole epoch. RECORD.pt has `image` (B, 3, H, W) float32, `text` (B, T) int64 and the
`loss` of each step, and the versions.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import open_clip_train.main as trainer
import torch
from torch import Tensor


class Recorded:
    """The trainer's loader. From its second epoch on it keeps the batches, and ends early."""

    def __init__(self, loader: Any, num_steps: int) -> None:
        self.loader = loader
        self.num_steps = num_steps
        self.num_batches = loader.num_batches  # the trainer's schedule is made of these two
        self.num_samples = loader.num_samples
        self.epoch = 0
        self.batches: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        for number, (image, text) in enumerate(self.loader):
            if self.epoch > 1 and number == self.num_steps:
                return
            if self.epoch > 1:
                self.batches.append((image.clone(), text.clone()))
            yield image, text


def main() -> None:
    file, num_steps, *flags = sys.argv[1:]
    loaders: list[Recorded] = []
    losses: list[float] = []
    get_data = trainer.get_data
    create_loss = trainer.create_loss

    def recorded_data(*arguments: Any, **options: Any) -> Any:
        data = get_data(*arguments, **options)
        data["train"].dataloader = Recorded(data["train"].dataloader, int(num_steps))
        loaders.append(data["train"].dataloader)
        return data

    def recorded_loss(args: Any) -> Any:
        loss = create_loss(args)

        def call(**inputs: Any) -> Any:
            values = loss(**inputs)
            losses.append(sum(values.values()).item())
            return values

        return call

    trainer.get_data = recorded_data
    trainer.create_loss = recorded_loss
    trainer.main(flags)
    (loader,) = loaders
    record = {
        "image": [image for image, _ in loader.batches],
        "text": [text for _, text in loader.batches],
        "loss": losses[loader.num_batches :],
        "versions": {name: version(name) for name in ("open_clip_torch", "torch", "timm")},
    }
    torch.save(record, file)


if __name__ == "__main__":
    main()
