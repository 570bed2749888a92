"""Populations of test sets whose true metrics are known, for benchmarks/interval_coverage.py.

Each function returns a Scenario: how a test set is drawn and evaluated, and the true values. Draws
come from torch's global generator, which the caller seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Beta, Geometric
from torch.nn import functional as F

from clipx import metrics
from clipx.comparison import difference
from clipx.evaluators.dedup import dedup_result
from clipx.evaluators.embedding_health import health
from clipx.evaluators.fairness import slice_result
from clipx.evaluators.labeled_set import LabeledSet
from clipx.evaluators.prompt_sensitivity import sensitivity_result
from clipx.evaluators.retrieval import pair_ranks, retrieval_result
from clipx.evaluators.robustness import robustness_result
from clipx.evaluators.test_sets import Images
from clipx.evaluators.zero_shot import classification_result, per_class
from clipx.metrics import embedding
from clipx.types import Result, Setting


@dataclass(frozen=True)
class Scenario:
    """draw: a test set, evaluated; truth: metric -> its value in the population

    above: the coverage may be above 99 %, for the reason given
    """

    name: str
    draw: Callable[[], Result]
    truth: dict[str, float]
    above: str | None = None


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def beta(mean: float, strength: float, *shape: int) -> Tensor:
    """Rates with a mean; the lower the strength, the more they differ."""
    return Beta(strength * mean, strength * (1 - mean)).sample(shape).double()


def keys(count: int) -> list[str]:
    return [str(n) for n in range(count)]


def mean_of_draws(draw: Callable[[], Result], names: list[str], draws: int) -> dict[str, float]:
    """The expectation of metrics that have no closed form."""
    found = [draw().metrics for _ in range(draws)]
    return {name: sum(values[name] for values in found) / len(found) for name in names}


# Classification: images are drawn within classes, which stay.


def zero_shot(
    name: str,
    sizes: Tensor,
    shift: Tensor,
    above: str | None = None,
    clusters: Tensor | None = None,
) -> Scenario:
    """sizes: (C,) images of each class; shift: (C,) by how much the right class scores higher;
    clusters: (N,) of images that are alike"""
    num_classes = len(sizes)
    label = torch.arange(num_classes).repeat_interleave(sizes)
    ids = torch.arange(num_classes)

    def scores_of(labels: Tensor, alike: Tensor | None = None) -> Tensor:
        scores = torch.randn(len(labels), num_classes)
        if alike is not None:
            shared = torch.randn(int(alike.max()) + 1, num_classes)
            scores = math.sqrt(0.8) * shared[alike] + math.sqrt(0.2) * scores
        scores[torch.arange(len(labels)), labels] += shift[labels]
        return scores

    def draw() -> Result:
        images = Images(Path(), keys(len(label)), lambda number: b"", clusters)
        labeled = LabeledSet(images, label, keys(num_classes))
        return classification_result(scores_of(label, clusters), 1.0, labeled, ids)

    many = torch.arange(num_classes).repeat_interleave(20_000 // num_classes + 150)
    rates = {}
    for k in (1, 5):
        hits = metrics.top_k_hits(scores_of(many), many, k).view(num_classes, -1)
        rates[k] = hits.double().mean(1)
    share = sizes.double() / sizes.sum()
    truth = {f"zeroshot-top{k}": float((share * rate).sum()) for k, rate in rates.items()}
    return Scenario(
        name, draw, truth | {"zeroshot-mean_per_class_recall": float(rates[1].mean())}, above
    )


def one_class(name: str, size: int, rate: float, above: str | None = None) -> Scenario:
    """A row of a table."""

    def draw() -> Result:
        predicted = (uniform(size) > rate).long()  # 0 is right
        row = per_class(predicted, torch.zeros(size, dtype=torch.int64), ["one"])[0]
        return Result({"recall": row["recall"]}, {"recall": (row["low"], row["high"])})

    return Scenario(name, draw, {"recall": rate}, above)


# Retrieval: images are drawn with their captions, and are one another's rivals.


def retrieval(
    draws: int,
    name: str,
    num_images: int,
    captions: Tensor,
    noise: float,
    above: str | None = None,
) -> Scenario:
    """draws: for the expectation; captions: (N,) of each image"""
    owner = torch.arange(num_images).repeat_interleave(captions)

    def draw() -> Result:
        meaning = torch.randn(num_images, 16)
        # What is odd about an image makes all its captions hard, or easy.
        image = F.normalize(meaning + noise * torch.randn(num_images, 16), dim=-1)
        text = F.normalize(meaning[owner] + noise * torch.randn(len(owner), 16), dim=-1)
        return retrieval_result(pair_ranks(image, text, owner, Setting()), keys(num_images))

    names = [
        f"{direction}_{metric}"
        for direction in ("image_to_text", "text_to_image")
        for metric in ("R@1", "R@5", "R@10", "mAP")
    ]
    return Scenario(name, draw, mean_of_draws(draw, names, draws), above)


def median_rank(name: str, num_images: int, captions: int, above: str | None = None) -> Scenario:
    """Ranks from 1 on, each a fifth less frequent than the one before; the median is 4."""
    owner = torch.arange(num_images).repeat_interleave(captions)

    def draw() -> Result:
        by_image = Geometric(0.2).sample((num_images,)).long()
        alone = Geometric(0.2).sample((len(owner),)).long()
        closer = torch.where(torch.rand(len(owner)) < 0.5, by_image[owner], alone)
        ranks = metrics.PairRanks(closer, closer, owner)
        return retrieval_result(ranks, keys(num_images))

    return Scenario(name, draw, {"text_to_image_median_rank": 4.0}, above)


# Stress tests: images are drawn.


def robustness(name: str, num_images: int, clean_rate: float, kept: float) -> Scenario:
    """kept: share of the corruptions in which an image that is right stays so"""

    def draw() -> Result:
        clean = (uniform(num_images) < clean_rate).double()
        found = {
            corruption: torch.where(clean > 0, beta(kept, 4, num_images), beta(0.05, 4, num_images))
            for corruption in ("noise-top1", "blur-top1")
        }
        return robustness_result(clean, found, [], keys(num_images))

    corrupted = clean_rate * kept + (1 - clean_rate) * 0.05
    truth = {"corrupted-top1": corrupted, "relative-top1": corrupted / clean_rate}
    return Scenario(name, draw, truth | {"clean-top1": clean_rate, "noise-top1": corrupted})


def prompts(name: str, num_images: int, templates: int, spread: float, above: str) -> Scenario:
    """spread: of the templates' quality; 0: all are equal"""
    quality = 1 + spread * torch.linspace(-1, 1, templates, dtype=torch.float64)

    def draw() -> Result:
        ease = torch.randn(num_images).double()
        noise = torch.randn(templates, num_images).double()
        hits = (ease + 0.5 * noise + quality[:, None] > 0).double()
        alone = {str(n): row for n, row in enumerate(hits)}
        together = (ease + 1.1 > 0).double()
        return sensitivity_result(alone, together, keys(num_images))

    rates = torch.special.ndtr(quality / math.sqrt(1.25))
    ensemble = torch.special.ndtr(torch.tensor(1.1, dtype=torch.float64)).item()
    single = rates.mean().item()
    truth = {"ensemble-top1": ensemble, "single-top1": single, "ensemble_gain": ensemble - single}
    truth |= {"best-top1": rates.max().item(), "worst-top1": rates.min().item()}
    return Scenario(name, draw, truth, above)


def slices(name: str, size: int, rates: Tensor, above: str) -> Scenario:
    """size: samples of each slice"""
    groups = [str(n) for n in range(len(rates)) for _ in range(size)]
    chance = rates.repeat_interleave(size)

    def draw() -> Result:
        whole = Result({}, keys=keys(len(groups)))
        whole.samples["hit"] = (uniform(len(groups)) < chance).double()
        return slice_result(whole, groups)

    truth = {"hit": rates.mean().item(), "hit-worst_slice": rates.min().item()}
    return Scenario(name, draw, truth, above)


# Clusters: products are drawn with all their pictures, which are alike.


def products(name: str, pictures: Tensor, rate: float, strength: float) -> Scenario:
    """pictures: (G,) of each product; strength: the lower, the more products differ"""
    clusters = torch.arange(len(pictures)).repeat_interleave(pictures)

    def draw() -> Result:
        result = Result(clusters=clusters)
        chance = beta(rate, strength, len(pictures))[clusters]
        metrics.add_rate(result, "hit", uniform(len(clusters)) < chance)
        return result

    return Scenario(name, draw, {"hit": rate})


def hits_in_products(clusters: Tensor) -> tuple[Tensor, Tensor, None]:
    """Of two equally good models, each of which is mostly right in all pictures of a product or in
    none. clusters: (N,) 0, 1 ..."""
    num_products = int(clusters.max()) + 1
    first, second = (
        (uniform(len(clusters)) < beta(0.7, 0.5, num_products)[clusters]).double() for _ in "ab"
    )
    return first, second, None


# Embeddings: groups of duplicates, positives and negatives, or pairs are drawn.


def duplicates(draws: int, name: str, groups: int, size: int, alone: int) -> Scenario:
    group = torch.cat([torch.arange(groups).repeat_interleave(size), groups + torch.arange(alone)])

    def draw() -> Result:
        center = torch.randn(groups + alone, 12)
        # Groups differ by how much their copies were changed.
        change = 0.3 + 0.5 * torch.rand(groups + alone, 1)
        rows = center[group] + change[group] * torch.randn(len(group), 12)
        return dedup_result(F.normalize(rows, dim=-1), group, 0.9, keys(len(group)))

    names = ["duplicate_share", "dedup-auroc", "dedup-nearest_recall"]
    return Scenario(name, draw, mean_of_draws(draw, names, draws))


def detection(name: str, positives: int, negatives: int, area: float) -> Scenario:
    """Normal scores."""
    positive = torch.arange(positives + negatives) < positives
    shift = math.sqrt(2) * torch.special.ndtri(torch.tensor(area, dtype=torch.float64))

    def draw() -> Result:
        score = torch.randn(len(positive)).double() + shift * positive
        interval = metrics.auroc_interval(score, positive)
        intervals = {} if interval is None else {"anomaly-auroc": interval}
        return Result({"anomaly-auroc": metrics.auroc(score, positive)}, intervals)

    return Scenario(name, draw, {"anomaly-auroc": area})


def space(name: str, num_pairs: int, gap: float) -> Scenario:
    """gap: how far images and texts are moved apart before they are normalized"""
    apart = torch.zeros(64)
    apart[0] = gap / 2

    def pairs(count: int) -> tuple[Tensor, Tensor]:
        meaning = torch.randn(count, 64) / 8
        rows = [meaning + 0.1 * torch.randn(count, 64) + sign * apart for sign in (1, -1)]
        return F.normalize(rows[0], dim=-1), F.normalize(rows[1], dim=-1)

    image, text = pairs(100_000)
    truth = {
        "alignment": embedding.squared_distances(image, text).mean().item(),
        "modality_gap": embedding.modality_gap(image, text),
    }
    return Scenario(name, lambda: health(*pairs(num_pairs)), truth)


# Comparisons: two models on the same samples.


def compared(
    name: str,
    pair: Callable[[], tuple[Tensor, Tensor, Tensor | None]],
    truth: float,
    above: str | None = None,
    clusters: Tensor | None = None,
) -> Scenario:
    """pair: (values of the first, of the second, weights); truth: the mean difference;
    clusters: (N,) of samples that are alike"""

    def draw() -> Result:
        found = difference("set", "metric", *pair(), clusters)
        value = found.second - found.first
        if found.low is not None and found.high is not None:
            interval = (found.low, found.high)
        elif found.distinguishable:  # the verdict alone: which of the two is higher
            interval = (1e-6, 1.0) if value > 0 else (-1.0, -1e-6)
        else:
            interval = (-1.0, 1.0)
        assert found.distinguishable == (not interval[0] <= 0 <= interval[1])
        return Result({"B - A": value}, {"B - A": interval})

    return Scenario(name, draw, {"B - A": truth}, above)


def right_or_wrong(
    count: int, only_first: float, only_second: float
) -> tuple[Tensor, Tensor, None]:
    """only_first, only_second: probability that one model alone gets a sample right"""
    place = uniform(count)
    first = (place < only_first).double()
    second = (place > 1 - only_second).double()
    return first, second, None


def reciprocal_ranks(count: int) -> tuple[Tensor, Tensor, None]:
    first, second = (1 / (1 + Geometric(0.3).sample((count,)).double()) for _ in "ab")
    return first, second, None


def caption_shares(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one to seven captions an image, by two models that agree on most images."""
    rate = beta(0.9, 1, count)
    other = torch.where(uniform(count) < 0.6, rate, beta(0.9, 1, count))
    captions = torch.randint(1, 8, (count,)).double()
    return *(torch.binomial(captions, r) / captions for r in (rate, other)), captions  # type: ignore[return-value]


EDGE = "counts of a few, or whole ranks: a coarse scale"
SINGLE = "one image a class shows no scatter within classes; that of all images is taken"
WITHIN = "products are drawn within classes; the interval allows for other classes too"
SELECTED = "simultaneous (Bonferroni): 95 % or more"
FEW = "an exact test of few samples rejects in less than 5 %"


def scenarios(draws: int = 600) -> list[Scenario]:
    """Built anew, since some find their truth by simulation: by so many draws."""
    torch.manual_seed(0)
    one, five = torch.ones(100, dtype=torch.int64), torch.full((60,), 5)
    uneven = torch.arange(20) % 10 * 3 + 1
    several = torch.tensor([1, 2, 3, 6])
    many = torch.arange(160).repeat_interleave(several.repeat(40))
    return [
        zero_shot("30 classes x 10", torch.full((30,), 10), torch.linspace(1, 5, 30)),
        zero_shot("20 classes x 1 to 28", uneven, torch.linspace(1, 5, 20), SINGLE),
        zero_shot("100 classes x 1", one, torch.linspace(1, 5, 100), SINGLE),
        zero_shot(
            "245 classes x 1, nearly all right",
            torch.ones(245, dtype=torch.int64),
            torch.full((245,), 5.5),
            SINGLE,
        ),
        one_class("a class of 5 in tables", 5, 0.7),
        one_class("a class of 50 in tables", 50, 0.96),
        retrieval(draws, "100 images", 100, one, 0.7),
        retrieval(draws, "60 images x 5 captions", 60, five, 0.7, EDGE),
        retrieval(draws, "60 images x 1 to 7", 60, torch.arange(60) % 7 + 1, 0.7, EDGE),
        retrieval(draws, "60 images x 5, nearly all found", 60, five, 0.35, EDGE),
        median_rank("60 images x 5 captions", 60, 5, EDGE),
        median_rank("100 images", 100, 1),
        robustness("100 images", 100, 0.8, 0.6),
        robustness("100 images, nearly all right", 100, 0.97, 0.95),
        prompts("300 images, 20 equal templates", 300, 20, 0.0, SELECTED),
        prompts("300 images, 20 templates", 300, 20, 0.3, SELECTED),
        slices("8 equal slices x 60", 60, torch.full((8,), 0.8), SELECTED),
        slices("8 slices x 60, one worse", 60, torch.tensor([0.6] + 7 * [0.9]), SELECTED),
        duplicates(draws, "40 groups of 5, 60 alone", 40, 5, 60),
        detection("20 and 20, nearly apart", 20, 20, 0.98),
        detection("20 and 200", 20, 200, 0.9),
        detection("100 and 100", 100, 100, 0.8),
        space("30 pairs", 30, 0.8),
        space("300 pairs, small gap", 300, 0.3),
        compared("8 images, hits, equal", lambda: right_or_wrong(8, 0.25, 0.25), 0.0, FEW),
        compared("300 images, hits, equal", lambda: right_or_wrong(300, 0.1, 0.1), 0.0),
        compared("300 images, hits", lambda: right_or_wrong(300, 0.05, 0.12), 0.07),
        compared("8 images, the verdict alone, equal", lambda: (uniform(8), uniform(8), None), 0.0),
        compared("100 images, reciprocal ranks, equal", lambda: reciprocal_ranks(100), 0.0),
        compared("100 images x 1 to 7 captions, equal", lambda: caption_shares(100), 0.0),
        compared("50 images", lambda: (beta(0.5, 4, 50), beta(2 / 3, 6, 50), None), 1 / 6),
        # Last, since what is built before draws from the same generator.
        zero_shot(
            "20 classes x 4 products of 1 to 6 pictures",
            torch.full((20,), 12),
            torch.linspace(1, 5, 20),
            WITHIN,
            torch.arange(80).repeat_interleave(several.repeat(20)),
        ),
        products("20 products x 1 to 6 pictures", several.repeat(5), 0.7, 0.5),
        products("160 products x 1 to 6 pictures", several.repeat(40), 0.9, 0.5),
        products("160 products x 2, nearly independent", torch.full((160,), 2), 0.4, 20),
        compared(
            "160 products x 1 to 6 pictures, equal",
            lambda: hits_in_products(many),
            0.0,
            clusters=many,
        ),
    ]
