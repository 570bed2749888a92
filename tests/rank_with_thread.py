"""clipx on a rank with a thread that goes in and out of torch when the work is done, as those of a
process group may (https://github.com/pytorch/pytorch/issues/38228)."""

from __future__ import annotations

import threading

import torch

from clipx import cli

work = cli.main


def add() -> None:
    number = torch.ones(100)
    while True:
        number + number


def main() -> None:
    try:
        work()
    finally:
        threading.Thread(target=add, daemon=True).start()


cli.main = main
cli.run()
