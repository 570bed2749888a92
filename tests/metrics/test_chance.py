"""Chance levels, against random scores and hand-worked values."""

from __future__ import annotations

import pytest
import torch

from clipx import metrics
from clipx.evaluators.retrieval import retrieval_result
from clipx.metrics.chance import chance_level


def test_chance_of_classes_is_a_share_of_them() -> None:
    counts = {"num_classes": 20, "num_samples": 300}
    assert chance_level("zeroshot-top1", counts) == 1 / 20
    assert chance_level("linear_probe-top5", counts) == 5 / 20
    assert chance_level("zeroshot-mean_per_class_recall", counts) == 1 / 20
    assert chance_level("zeroshot-top5", {"num_classes": 3}) == 1
    assert chance_level("zeroshot-ece", counts) is None
    assert chance_level("zeroshot-top1", {"num_samples": 300}) is None, "an older run"


def test_chance_of_one_caption_an_image() -> None:
    counts = {"num_samples": 50, "num_captions": 50}
    for direction in ("image_to_text", "text_to_image"):
        assert chance_level(f"{direction}_R@5", counts) == pytest.approx(5 / 50)
        harmonic = sum(1 / rank for rank in range(1, 51))
        assert chance_level(f"{direction}_mAP", counts) == pytest.approx(harmonic / 50)
        assert chance_level(f"{direction}_median_rank", counts) is None
    assert chance_level("image_to_text_R@50", counts) == 1


def test_chance_is_the_mean_over_random_embeddings() -> None:
    """Of 12 images with 3 captions each, in every metric of the evaluator that has a chance."""
    num_images = 12
    owner = torch.arange(num_images).repeat_interleave(3)
    counts = {"num_samples": num_images, "num_captions": len(owner)}
    generator = torch.Generator().manual_seed(0)
    totals: dict[str, float] = {}
    trials = 100
    for _ in range(trials):
        image = torch.randn(num_images, 64, generator=generator)
        text = torch.randn(len(owner), 64, generator=generator)
        counter = metrics.PairCounter(image, text, owner, device="cpu")
        for block in metrics.image_blocks(num_images):
            counter.count(block)
        ranks = metrics.PairRanks(counter.closer_images, counter.closer_captions, owner)
        for name, value in retrieval_result(ranks, [""] * num_images).metrics.items():
            totals[name] = totals.get(name, 0) + value / trials
    checked = 0
    for name, value in totals.items():
        chance = chance_level(name, counts)
        if chance is not None:
            assert value == pytest.approx(chance, abs=0.04), name
            checked += 1
    assert checked == 8
