"""Linear probe: logistic regression on frozen image features, on all training samples or on a few
of each class (arXiv:2103.00020, appendix A.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clipx import metrics
from clipx.config import config
from clipx.evaluators.classifier import add_accuracy
from clipx.evaluators.distributed import on_main
from clipx.evaluators.labeled_set import LabeledConfig, LabeledSet, read_train_and_test
from clipx.evaluators.sample_source import SourceOrHeldOut
from clipx.types import ImageTextEncoder, Result, Setting, UserError

STEPS_PER_DECADE = 8
COARSE = range(-6, 7, 2)  # exponents of ten of the first strengths; the sweep stays within them


@config
class Config(LabeledConfig):
    """A set of images with classes that has training samples too."""

    train_split: str = "train"
    """Folder of the training samples."""
    train_source: SourceOrHeldOut = None
    """Training samples beside a `source`; null: for `held_out`, the training part of the run."""
    shots: int | None = Field(default=None, ge=1)
    """Training samples of each class, drawn at random; null: all."""
    strength: float | None = Field(default=None, gt=0)
    """L2 regularization; null: found by the paper's sweep on a fifth of the training samples."""
    seed: int = Field(default=0, ge=0)
    """Of the draw of `shots`, and of the part that the sweep holds out."""

    def build(self) -> LinearProbe:
        return LinearProbe(self)


class LinearProbe:
    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.train, self.test = read_train_and_test(
            settings, settings.train_split, settings.train_source
        )
        if settings.shots is not None:
            self.train = few_shot(self.train, settings.shots, settings.seed)

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        train = self.train.features(encoder, setting)
        test = self.test.features(encoder, setting)
        label = self.train.label
        num_classes = len(self.train.names)
        # Fits on rank 0: ranks of one machine share its cores, and would all compute the same.
        strength = self.settings.strength
        if strength is None:
            seed = self.settings.seed
            strength = on_main(setting, sweep, train, label, num_classes, seed, setting)
        scores = on_main(setting, class_scores, train, label, test, num_classes, strength)
        result = Result(keys=self.test.images.keys, clusters=self.test.images.clusters)
        add_accuracy(result, "probe", scores, self.test)
        result.add("probe-strength", strength)
        return result


def few_shot(labeled: LabeledSet, shots: int, seed: int) -> LabeledSet:
    """`shots` samples of each class, drawn at random. Raises UserError if a class has fewer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number, name in enumerate(labeled.names):
        rows = (labeled.label == number).nonzero().flatten()
        if len(rows) < shots:
            raise UserError(
                f"{labeled.images.path} has {len(rows)} training samples of {name!r}; "
                f"shots {shots} needs as many of each class"
            )
        drawn = torch.randperm(len(rows), generator=generator)[:shots]
        chosen.append(rows[drawn])
    # In the order of the set, so that its shards are read forward.
    return labeled.subset(torch.cat(chosen).sort().values.tolist())


def class_scores(
    train: Tensor, label: Tensor, test: Tensor, num_classes: int, strength: float
) -> Tensor:
    """(N, C) float64 scores of test rows by a logistic regression on training rows. A class without
    training rows scores -inf.

    train: (M, D); label: (M,) int64; test: (N, D); strength: of L2, 1 / C of scikit-learn
    """
    # With a tolerance of 1e-8, probabilities are within 2e-5 of the optimum; with the default of
    # 1e-4 they were 0.03 off, on 5,000 samples of 37 classes.
    model = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=1000)
    with warnings.catch_warnings():
        # Separable classes with weak regularization have their optimum far away. 1,000 iterations
        # are those of the paper.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.double().numpy(), label.numpy())
    logits = torch.from_numpy(model.decision_function(test.double().numpy()))
    if logits.ndim == 1:  # of two classes, the logit of the second
        logits = torch.stack([-logits, logits], dim=1)
    # scikit-learn knows only the classes that occur in training.
    scores = torch.full((len(test), num_classes), -torch.inf, dtype=torch.float64)
    scores[:, torch.from_numpy(model.classes_)] = logits
    return scores


def sweep(features: Tensor, label: Tensor, num_classes: int, seed: int, setting: Setting) -> float:
    """The strength that is best on a fifth of the samples after a fit to the others. The final fit
    is then to all of them."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=generator)
    num_held = max(1, len(label) // 5)
    held = order[:num_held]
    kept = order[num_held:]

    def accuracy(strength: float) -> float:
        setting.check_stop()  # a fit takes minutes on 100,000 samples
        scores = class_scores(features[kept], label[kept], features[held], num_classes, strength)
        return metrics.top_k_accuracy(scores, label[held], 1)

    return best_strength(accuracy)


def best_strength(accuracy: Callable[[float], float]) -> float:
    """The strength of regularization with the highest accuracy: from every second power of ten
    between 1e-6 and 1e6, halve the step around the peak down to 8 steps a decade.

    accuracy: of a strength, on validation samples
    """
    tried = {float(exponent): accuracy(10.0**exponent) for exponent in COARSE}
    step = 2.0
    while step > 1 / STEPS_PER_DECADE:
        step /= 2  # a power of two, so that an exponent is reached with the same bits by any path
        peak = _middle_of_best(tried)
        for exponent in (peak - step, peak + step):
            if COARSE[0] <= exponent <= COARSE[-1] and exponent not in tried:
                tried[exponent] = accuracy(10.0**exponent)
    return 10.0 ** _middle_of_best(tried)


def _middle_of_best(accuracy: dict[float, float]) -> float:
    """The exponent in the middle of the widest run of neighbors with the best accuracy.

    accuracy: by exponent
    """
    # A few validation samples are classified alike over decades of strengths. The middle is the
    # farthest from where accuracy is known to fall.
    best = max(accuracy.values())
    widest: list[float] = []
    run: list[float] = []
    for exponent in sorted(accuracy):
        if accuracy[exponent] < best:
            run = []
            continue
        run = [*run, exponent]
        # The sweep is finer near a peak, so a run is as wide as its ends are apart.
        if not widest or run[-1] - run[0] > widest[-1] - widest[0]:
            widest = run
    middle = (widest[0] + widest[-1]) / 2
    return min(widest, key=lambda exponent: abs(exponent - middle))
