"""Multinomial logistic regression by L-BFGS, and the sweep of CLIP's paper over its strength of
regularization (arXiv:2103.00020, appendix A.3)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS_PER_DECADE = 8
COARSE = range(-6, 7, 2)
"""Exponents of ten of the first inverse strengths; the sweep stays within them."""


def fit(features: Tensor, label: Tensor, num_classes: int, strength: float) -> Tensor:
    """(D + 1, C) float64 weights, the bias in the last row.

    Minimizes the sum of cross-entropies over N samples plus strength / 2 x the squared norm of the
    weights, the bias left free: scikit-learn's LogisticRegression with C = 1 / strength.
    features: (N, D); label: (N,) int64
    """
    x = F.pad(features.double(), (0, 1), value=1.0)
    weights = torch.zeros(x.shape[1], num_classes, dtype=x.dtype, device=x.device)
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights, label)
        # The mean, not the sum, so that tolerances do not depend on the number of samples.
        value = value + strength / (2 * len(x)) * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return weights.detach()


def logits(features: Tensor, weights: Tensor) -> Tensor:
    """(N, C) float64"""
    return features.double() @ weights[:-1] + weights[-1]


def best_strength(accuracy: Callable[[float], float]) -> float:
    """The strength of regularization with the highest accuracy: from every second power of ten
    between 1e-6 and 1e6, halving the step around the peak down to 8 steps a decade.

    A few validation samples are classified alike over decades of strengths. Among equal ones, the
    middle is the farthest from where accuracy is known to fall.

    accuracy: of a strength, on validation samples
    """
    found = {float(e): accuracy(10.0**e) for e in COARSE}
    step = 2.0
    while step > 1 / STEPS_PER_DECADE:
        step /= 2
        peak = _middle_of_best(found)
        for exponent in (peak - step, peak + step):
            if COARSE[0] <= exponent <= COARSE[-1] and exponent not in found:
                found[exponent] = accuracy(10.0**exponent)
    return math.pow(10, _middle_of_best(found))


def _middle_of_best(found: dict[float, float]) -> float:
    """The exponent in the middle of the widest run of neighbors that are all the best.

    found: exponent -> accuracy
    """
    best = max(found.values())
    runs: list[list[float]] = [[]]
    for exponent in sorted(found):
        if found[exponent] == best:
            runs[-1].append(exponent)
        else:
            runs.append([])
    widest = max((run for run in runs if run), key=lambda run: run[-1] - run[0])
    middle = (widest[0] + widest[-1]) / 2
    return min(widest, key=lambda exponent: abs(exponent - middle))
