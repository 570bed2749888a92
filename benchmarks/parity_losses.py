"""The losses of clipx beside those of lightly, pytorch-metric-learning, sentence-transformers and
open_clip: the same inputs in float64, the same values and gradients.

    bash benchmarks/losses_env.sh            # once: the peers in an environment of their own
    python benchmarks/parity_losses.py [--check]

Prints a row for each loss with the largest absolute difference over several draws, in the value and
in the gradients of unnormalized rows, of the temperature where the peer has one, and of a small
model's weights where the loss of the peer runs the model itself. --check fails where one is above
1e-10. Where a peer defines a loss otherwise, the row says what was added or combined.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parity_inputs import (
    MARGIN,
    TEACHER_SCALE,
    WIDTHS,
    Case,
    Inputs,
    Outcome,
    draw,
    outcome,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from clipx.distributed.pool import LocalPool
from clipx.losses import infonce, margin, matryoshka, multi_positive, nt_xent, sigmoid, triplet
from clipx.losses.distillation import similarity_kl
from clipx.types import Loss, Negatives

ROOT = Path(__file__).parents[1]
BAR = 1e-10
DRAWS = 5
POOL = LocalPool()


@dataclass(frozen=True)
class Row:
    """ours: what equals the peer's loss; note: where it takes more than one call"""

    ours: Case
    name: str
    note: str = ""


def run(
    loss: Loss, inputs: Inputs, ids: Tensor | None = None, *, learns_scale: bool = False
) -> Tensor:
    scale = inputs["logit_scale"]
    return loss(
        inputs.image,
        inputs.text,
        logit_scale=scale if learns_scale else scale.detach(),
        logit_bias=inputs["logit_bias"],
        pool=POOL,
        ids=None if ids is None else ids[:, None],
    ).loss


def plain(loss: Loss, *, learns_scale: bool = False) -> Case:
    return lambda inputs: run(loss, inputs, learns_scale=learns_scale)


def with_ids(loss: Loss, name: str) -> Case:
    return lambda inputs: run(loss, inputs, inputs[name])


def with_a_queue(inputs: Inputs) -> Tensor:
    """Row by row, because the peer takes its negatives from the bank alone."""
    loss = infonce.Config().build()
    image, text = inputs.image, inputs.text
    scale = inputs["logit_scale"].detach()
    past = Negatives(inputs["past_image"], inputs["past_text"])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(image)):
        row = slice(i, i + 1)
        out = loss(image[row], text[row], logit_scale=scale, pool=POOL, negatives=past)
        total = total + out.loss / len(image)
    return total


def embedded(loss: Loss) -> Case:
    """Through the small tower, which embeds images as well as texts."""

    def case(inputs: Inputs) -> Tensor:
        rows = []
        for name in ("image", "text"):
            hidden = torch.tanh(inputs[name].detach() @ inputs["first_layer"].T)
            rows.append(F.normalize(hidden @ inputs["second_layer"].T, dim=1))
        scale = inputs["logit_scale"].detach()
        return loss(rows[0], rows[1], logit_scale=scale, logit_bias=None, pool=POOL).loss

    return case


def with_a_teacher(inputs: Inputs) -> Tensor:
    """The peer's term is a cross-entropy: the KL divergence and the entropy of the teacher."""
    image, text = inputs.image, inputs.text
    teacher_image, teacher_text = inputs["teacher_image"], inputs["teacher_text"]
    contrast = run(infonce.Config().build(), inputs, learns_scale=True)
    teacher = (teacher_image, teacher_text, TEACHER_SCALE)
    divergence = similarity_kl(image, text, inputs.scale, *teacher, POOL)
    logits = TEACHER_SCALE * teacher_image @ teacher_text.T
    entropy = torch.zeros((), dtype=torch.float64)
    for directed in (logits, logits.T):
        entropy -= (directed.softmax(1) * directed.log_softmax(1)).sum(1).mean() / 2
    return contrast + divergence + entropy


def triplets(mining: triplet.Mining) -> Case:
    return plain(triplet.Config(margin=MARGIN, mining=mining).build())


def by_class(image_image: float) -> Case:
    config = multi_positive.Config(concept="label", image_image=image_image)
    return with_ids(config.build(), "classes")


def rows() -> dict[str, Row]:
    """By the name of the peer's case."""
    pair = infonce.Config()
    widths = matryoshka.Config(widths=WIDTHS, loss=pair)
    all_pairs = margin.Config(margin=MARGIN, pairs="all", concept="label")
    euclidean = triplet.Config(margin=MARGIN, mining="all", distance="euclidean")
    squared = "the peer's terms squared, as in Hadsell's loss"
    return {
        "lightly NTXentLoss": Row(plain(nt_xent.Config().build()), "nt_xent"),
        "lightly NTXentLoss, memory bank": Row(
            with_a_queue,
            "infonce, queue",
            "row by row, and the mean of the peer's both ways",
        ),
        "pml NTXentLoss": Row(plain(nt_xent.Config().build()), "nt_xent"),
        "pml TripletMarginLoss, all, cosine": Row(triplets("all"), "triplet, all"),
        "pml TripletMarginLoss, all, euclidean": Row(
            plain(euclidean.build()), "triplet, all, euclidean", "the peer's distance with power=2"
        ),
        "pml TripletMarginLoss, semi-hard": Row(triplets("semi_hard"), "triplet, semi_hard"),
        "pml TripletMarginLoss, hardest": Row(
            triplets("hardest"), "triplet, hardest", "the peer's BatchHardMiner and MeanReducer"
        ),
        "pml ContrastiveLoss, all pairs": Row(
            with_ids(all_pairs.build(), "classes"), "margin, all", squared
        ),
        "pml ContrastiveLoss, labeled pairs": Row(
            with_ids(margin.Config(margin=MARGIN).build(), "labels"), "margin, labeled", squared
        ),
        "pml SupConLoss, image-text": Row(by_class(0.0), "multi_positive"),
        "pml SupConLoss, image-image too": Row(
            by_class(1.0), "multi_positive, image_image", "the sum of the peer's calls"
        ),
        "st MatryoshkaLoss": Row(embedded(widths.build()), "matryoshka"),
        "st CachedMultipleNegativesRankingLoss": Row(embedded(pair.build()), "infonce"),
        "st MatryoshkaLoss, cached": Row(embedded(widths.build()), "matryoshka"),
        "open_clip ClipLoss": Row(plain(pair.build(), learns_scale=True), "infonce"),
        "open_clip SigLipLoss": Row(plain(sigmoid.Config().build(), learns_scale=True), "sigmoid"),
        "open_clip DistillClipLoss": Row(
            with_a_teacher, "infonce + similarity_kl", "the teacher's entropy added to the KL"
        ),
    }


def difference(ours: Outcome, theirs: Outcome) -> tuple[float, float]:
    """(in the value, largest in a gradient)"""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"gradients of {sorted(ours)} here, of {sorted(theirs)} at the peer")
    of_gradients = 0.0
    for name, tensor in theirs.items():
        if name != "value":
            of_gradients = max(of_gradients, (ours[name] - tensor).abs().max().item())
    return (ours["value"] - theirs["value"]).abs().item(), of_gradients


def peers(env: Path, inputs: list[dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    """`results`, one for each draw, and `versions`"""
    python = env / "bin/python"
    if not python.exists():
        sys.exit(f"{python} does not exist; make it by: bash benchmarks/losses_env.sh {env}")
    torch.save(inputs, folder / "inputs.pt")
    script = Path(__file__).with_name("peer_losses.py")
    command = [python, script, folder / "inputs.pt", folder / "out.pt"]
    subprocess.run(command, check=True)
    return torch.load(folder / "out.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--env", type=Path, default=ROOT / ".venv-losses")
    parser.add_argument("--check", action="store_true", help="fail where two numbers differ")
    arguments = parser.parse_args()
    inputs = [draw(seed) for seed in range(DRAWS)]
    with tempfile.TemporaryDirectory() as folder:
        theirs = peers(arguments.env, inputs, Path(folder))
    table = Table("peer", "clipx", "value", "gradients", "note")
    figures: dict[str, float] = {}
    for name, row in rows().items():
        of_value = of_gradients = 0.0
        for tensors, results in zip(inputs, theirs["results"], strict=True):
            first, second = difference(outcome(row.ours, tensors), results[name])
            of_value, of_gradients = max(of_value, first), max(of_gradients, second)
        table.add_row(name, row.name, f"{of_value:.0e}", f"{of_gradients:.0e}", row.note)
        figures[name] = max(of_value, of_gradients)
    table.title = f"largest difference of {DRAWS} draws, float64"
    Console(highlight=False, width=150).print(table)
    print(json.dumps({"largest_difference": figures, "versions": theirs["versions"]}))
    missed = [name for name, value in figures.items() if not value <= BAR]
    if arguments.check and missed:
        sys.exit(f"more than {BAR:.0e}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
