"""Multinomial logistic regression by L-BFGS, and the sweep of CLIP's paper over its strength of
regularization (arXiv:2103.00020, appendix A.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS_PER_DECADE = 8
COARSE = range(-6, 7, 2)  # exponents of ten of the first strengths; the sweep stays within them


def fit(
    features: Tensor,
    label: Tensor,
    num_classes: int,
    strength: float,
    check_stop: Callable[[], None] = lambda: None,
) -> Tensor:
    """(D + 1, C) float64 weights, the bias in the last row.

    Minimizes the sum of cross-entropies over N samples plus strength / 2 x the squared norm of the
    weights, the bias left free: scikit-learn's LogisticRegression with C = 1 / strength.

    features: (N, D); label: (N,) int64
    check_stop: called in each iteration; raises to end the fit
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
        check_stop()
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
    between 1e-6 and 1e6, halve the step around the peak down to 8 steps a decade.

    accuracy: of a strength, on validation samples
    """
    tried = {float(exponent): accuracy(10.0**exponent) for exponent in COARSE}
    step = 2.0
    while step > 1 / STEPS_PER_DECADE:
        step /= 2
        peak = _middle_of_best(tried)
        for exponent in (peak - step, peak + step):
            if COARSE[0] <= exponent <= COARSE[-1] and exponent not in tried:
                tried[exponent] = accuracy(10.0**exponent)
    return 10.0 ** _middle_of_best(tried)


def _middle_of_best(accuracy: dict[float, float]) -> float:
    """The exponent in the middle of the widest run of neighbors with the best accuracy.

    A few validation samples are classified alike over decades of strengths. The middle is the
    farthest from where accuracy is known to fall.

    accuracy: by exponent
    """
    best = max(accuracy.values())
    runs: list[list[float]] = []
    previous_is_best = False
    for exponent in sorted(accuracy):
        is_best = accuracy[exponent] == best
        if is_best and previous_is_best:
            runs[-1].append(exponent)
        elif is_best:
            runs.append([exponent])
        previous_is_best = is_best
    widest = max(runs, key=lambda run: run[-1] - run[0])
    middle = (widest[0] + widest[-1]) / 2
    return min(widest, key=lambda exponent: abs(exponent - middle))
