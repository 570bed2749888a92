"""The peers' own losses, for benchmarks/parity_losses.py. Runs in the environment of
benchmarks/losses_env.sh: peer_losses.py INPUTS OUT"""

from __future__ import annotations

import importlib.metadata
import sys

import torch
from lightly.loss import NTXentLoss
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from parity_inputs import (
    MARGIN,
    TEACHER_SCALE,
    WIDTH,
    WIDTHS,
    Inputs,
    outcome,
)
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as sentence_losses
from torch import Tensor, nn

BOTH_DIRECTIONS = {
    "directions": ("query_to_doc", "doc_to_query"),
    "partition_mode": "per_direction",
}


def both_ways(loss: nn.Module, inputs: Inputs, labels: Tensor, miner: nn.Module | None) -> Tensor:
    """A loss of pytorch-metric-learning, of images with texts and back."""
    total = torch.zeros((), dtype=torch.float64)
    for rows, others in ((inputs.image, inputs.text), (inputs.text, inputs.image)):
        # With the very same labels pytorch-metric-learning would leave own pairs out.
        other_labels = labels.clone()
        mined = None if miner is None else miner(rows, labels, others, other_labels)
        total = total + loss(rows, labels, mined, others, other_labels) / 2
    return total


def lightly_without_bank(inputs: Inputs) -> Tensor:
    loss = NTXentLoss(temperature=1 / inputs.scale.item())
    return loss(inputs.image, inputs.text)


def lightly_with_bank(inputs: Inputs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for rows, others, bank in (
        (inputs.image, inputs.text, inputs["past_text"]),
        (inputs.text, inputs.image, inputs["past_image"]),
    ):
        loss = NTXentLoss(temperature=1 / inputs.scale.item(), memory_bank_size=tuple(bank.shape))
        loss.memory_bank.bank = bank.clone()
        total = total + loss(rows, others) / 2
    return total


def own_labels(inputs: Inputs) -> Tensor:
    return torch.arange(len(inputs["image"]))


def ntxent(inputs: Inputs) -> Tensor:
    loss = losses.NTXentLoss(temperature=1 / inputs.scale.item())
    return loss(torch.cat([inputs.image, inputs.text]), own_labels(inputs).repeat(2))


def triplets_all_cosine(inputs: Inputs) -> Tensor:
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distances.CosineSimilarity())
    return both_ways(loss, inputs, own_labels(inputs), None)


def triplets_all_euclidean(inputs: Inputs) -> Tensor:
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distances.LpDistance(power=2))
    return both_ways(loss, inputs, own_labels(inputs), None)


def triplets_semi_hard(inputs: Inputs) -> Tensor:
    distance = distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance)
    miner = miners.TripletMarginMiner(MARGIN, type_of_triplets="semihard", distance=distance)
    return both_ways(loss, inputs, own_labels(inputs), miner)


def triplets_hardest(inputs: Inputs) -> Tensor:
    distance = distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(
        margin=MARGIN, distance=distance, reducer=reducers.MeanReducer()
    )
    return both_ways(loss, inputs, own_labels(inputs), miners.BatchHardMiner(distance=distance))


def contrastive(
    inputs: Inputs, labels: Tensor | None, pairs: tuple[Tensor, ...] | None
) -> tuple[Tensor, Tensor]:
    """Its terms of positive pairs and of negative pairs, before they are reduced. Its distance is
    not squared, where Hadsell's is."""
    loss = losses.ContrastiveLoss(pos_margin=0, neg_margin=MARGIN, distance=distances.LpDistance())
    other_labels = None if labels is None else labels.clone()
    terms = loss.compute_loss(inputs.image, labels, pairs, inputs.text, other_labels)
    return terms["pos_loss"]["losses"].square(), terms["neg_loss"]["losses"].square()


def contrastive_all(inputs: Inputs) -> Tensor:
    positive, negative = contrastive(inputs, inputs["classes"], None)
    return positive.mean() + negative.mean()


def contrastive_labeled(inputs: Inputs) -> Tensor:
    is_positive = inputs["labels"] == 1
    positive = is_positive.nonzero()[:, 0]
    negative = (~is_positive).nonzero()[:, 0]
    terms = contrastive(inputs, None, (positive, positive, negative, negative))
    return torch.cat(terms).mean()


def supcon_between(inputs: Inputs) -> Tensor:
    loss = losses.SupConLoss(temperature=1 / inputs.scale.item())
    return both_ways(loss, inputs, inputs["classes"], None)


def supcon_within(inputs: Inputs) -> Tensor:
    loss = losses.SupConLoss(temperature=1 / inputs.scale.item())
    return supcon_between(inputs) + loss(inputs.image, inputs["classes"])


class Tower(nn.Module):
    """Two layers, as a module of sentence-transformers."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        hidden = torch.tanh(features["input_ids"] @ self.inputs["first_layer"].T)
        return {**features, "sentence_embedding": hidden @ self.inputs["second_layer"].T}

    def get_embedding_dimension(self) -> int:
        return WIDTH


def sentences(inputs: Inputs) -> tuple[SentenceTransformer, list[dict[str, Tensor]]]:
    """A model, and images and texts as its inputs."""
    ones = torch.ones(inputs["image"].shape, dtype=torch.long)
    columns = []
    for name in ("image", "text"):
        columns.append({"input_ids": inputs[name].detach(), "attention_mask": ones})
    return SentenceTransformer(modules=[Tower(inputs)], device="cpu"), columns


def matryoshka(inputs: Inputs) -> Tensor:
    model, columns = sentences(inputs)
    scale = inputs.scale.item()
    inner = sentence_losses.MultipleNegativesRankingLoss(model, scale=scale, **BOTH_DIRECTIONS)
    loss = sentence_losses.MatryoshkaLoss(model, inner, list(WIDTHS), list(WIDTHS.values()))
    return loss(columns, None)


def cached(inputs: Inputs) -> Tensor:
    model, columns = sentences(inputs)
    loss = sentence_losses.CachedMultipleNegativesRankingLoss(
        model, scale=inputs.scale.item(), mini_batch_size=5, **BOTH_DIRECTIONS
    )
    return loss(columns, None)


def cached_matryoshka(inputs: Inputs) -> Tensor:
    model, columns = sentences(inputs)
    inner = sentence_losses.CachedMultipleNegativesRankingLoss(
        model, scale=inputs.scale.item(), mini_batch_size=5, **BOTH_DIRECTIONS
    )
    loss = sentence_losses.MatryoshkaLoss(model, inner, list(WIDTHS), list(WIDTHS.values()))
    return loss(columns, None)


def clip(inputs: Inputs) -> Tensor:
    return ClipLoss()(inputs.image, inputs.text, inputs.scale)


def siglip(inputs: Inputs) -> Tensor:
    return SigLipLoss()(inputs.image, inputs.text, inputs.scale, inputs["logit_bias"])


def distill(inputs: Inputs) -> Tensor:
    teacher = (inputs["teacher_image"], inputs["teacher_text"], TEACHER_SCALE)
    contrast, distillation = DistillClipLoss()(inputs.image, inputs.text, inputs.scale, *teacher)
    return contrast + distillation


CASES = {
    "lightly NTXentLoss": lightly_without_bank,
    "lightly NTXentLoss, memory bank": lightly_with_bank,
    "pml NTXentLoss": ntxent,
    "pml TripletMarginLoss, all, cosine": triplets_all_cosine,
    "pml TripletMarginLoss, all, euclidean": triplets_all_euclidean,
    "pml TripletMarginLoss, semi-hard": triplets_semi_hard,
    "pml TripletMarginLoss, hardest": triplets_hardest,
    "pml ContrastiveLoss, all pairs": contrastive_all,
    "pml ContrastiveLoss, labeled pairs": contrastive_labeled,
    "pml SupConLoss, image-text": supcon_between,
    "pml SupConLoss, image-image too": supcon_within,
    "st MatryoshkaLoss": matryoshka,
    "st CachedMultipleNegativesRankingLoss": cached,
    "st MatryoshkaLoss, cached": cached_matryoshka,
    "open_clip ClipLoss": clip,
    "open_clip SigLipLoss": siglip,
    "open_clip DistillClipLoss": distill,
}
PACKAGES = ("torch", "lightly", "pytorch-metric-learning", "sentence-transformers")
PACKAGES += ("open_clip_torch",)


def main() -> None:
    source, out = sys.argv[1:]
    all_tensors = torch.load(source)
    results = []
    for tensors in all_tensors:
        results.append({name: outcome(case, tensors) for name, case in CASES.items()})
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    torch.save({"results": results, "versions": versions}, out)


if __name__ == "__main__":
    main()
