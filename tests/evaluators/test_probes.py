"""Probes, clusters, duplicates and anomalies by hand; nearest neighbors against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from samples import solid
from sklearn.neighbors import KNeighborsClassifier
from test_class_folders import Knowing, write_folders
from torch import Tensor
from torch.nn import functional as F

from clipx.evaluators import anomaly, clustering, dedup, knn, linear_probe
from clipx.evaluators.anomaly import anomaly_score
from clipx.evaluators.dedup import dedup_result
from clipx.evaluators.labeled_set import LabeledConfig
from clipx.evaluators.linear_probe import best_strength, class_scores, sweep
from clipx.metrics import top_k_accuracy
from clipx.types import Setting, StopRequested, UserError


def noisy_classes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 4
    rows = torch.eye(4, 12)[label] + 0.6 * torch.randn(count, 12, generator=generator)
    return F.normalize(rows, dim=-1), label


def optimum(features: Tensor, label: Tensor, test: Tensor, strength: float) -> Tensor:
    """Log-probabilities of test rows where the sum of cross-entropies plus strength / 2 |w|^2 is
    least, the bias left free. Of two classes, the first has no weights."""
    x = F.pad(features.double(), (0, 1), value=1.0)
    num_classes = int(label.max()) + 1
    weights = torch.zeros(x.shape[1], num_classes - (num_classes == 2), dtype=x.dtype)
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def scores(rows: Tensor) -> Tensor:
        return F.pad(rows @ weights, (num_classes - weights.shape[1], 0))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scores(x), label)
        value = value + strength / (2 * len(x)) * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return scores(F.pad(test.double(), (0, 1), value=1.0)).detach().log_softmax(1)


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("classes", [[0, 1, 2, 3], [1, 3], [0, 2, 3]])
def test_a_fit_is_the_optimum_over_the_classes_that_occur(
    classes: list[int], strength: float
) -> None:
    features, label = noisy_classes(150, 0)
    test, _ = noisy_classes(60, 1)
    occurs = torch.isin(label, torch.tensor(classes))
    features = features[occurs]
    label = label[occurs]
    scores = class_scores(features, label, test, 4, strength)
    absent = [c for c in range(4) if c not in classes]
    assert (scores[:, absent] == -torch.inf).all()
    found = scores[:, classes]
    if len(classes) == 2:  # plus and minus the logit
        found = found.sub(found[:, :1]) / 2
    numbered = torch.searchsorted(torch.tensor(classes), label)
    expected = optimum(features, numbered, test, strength)
    torch.testing.assert_close(found.softmax(1), expected.exp(), rtol=0, atol=2e-5)


def test_the_sweep_finds_the_peak_to_an_eighth_of_a_decade() -> None:
    tried: list[float] = []

    def accuracy(strength: float) -> float:
        tried.append(strength)
        return -abs(torch.tensor(strength).log10().item() - 1.37)

    assert best_strength(accuracy) == pytest.approx(10**1.375)
    assert len(tried) <= 7 + 2 * 4, "halved four times: 2, 1, 1/2, 1/4, 1/8"
    assert min(tried) == pytest.approx(1e-6)
    assert max(tried) == pytest.approx(1e6)
    assert best_strength(lambda strength: strength) == pytest.approx(1e6)


def test_of_equally_good_strengths_the_sweep_takes_the_middle() -> None:
    plateau = best_strength(lambda strength: float(1e-5 < strength < 1e3))
    assert 1e-3 <= plateau <= 1e1
    assert best_strength(lambda strength: 0.5) == 1.0
    # A single peak elsewhere is no reason to leave the middle of the wider run.
    assert best_strength(lambda s: float(s < 1e-5 or 1e-1 < s < 1e5)) == pytest.approx(1e2, rel=9)


@pytest.mark.parametrize("seed", [2, 4])
def test_the_middle_of_a_tie_is_better_on_test_than_its_weakest_end(seed: int) -> None:
    """Four validation samples cannot separate strengths over decades; 1000 test samples can."""
    train, label = noisy_classes(20, seed)
    test, truth = noisy_classes(1000, 100 + seed)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    held, kept = order[:4], order[4:]
    on_held, on_test = {}, {}
    for strength in (sweep(train, label, 4, 0, Setting()), 1e-6):
        scores = class_scores(train[kept], label[kept], train[held], 4, strength)
        on_held[strength] = top_k_accuracy(scores, label[held], 1)
        scores = class_scores(train, label, test, 4, strength)
        on_test[strength] = top_k_accuracy(scores, truth, 1)
    chosen, weakest = on_test
    assert on_held[chosen] == on_held[weakest]
    assert on_test[chosen] > on_test[weakest] + 0.015


def test_the_vote_is_scikit_learns() -> None:
    train, label = noisy_classes(120, 2)
    test, _ = noisy_classes(200, 3)
    for k in (1, 4, 20):
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train, label)
        assert knn.vote(train, label, test, k, 4).tolist() == model.predict(test).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("test", 4)):
        write_folders(tmp_path / split, ["a", "b", "c"], images=count)
    return tmp_path


ENCODER = Knowing(["a", "b", "c"])


def test_probes_of_perfect_features_are_perfect(folder: Path) -> None:
    for config, metric in (
        (linear_probe.Config(path=str(folder)), "probe-top1"),
        (linear_probe.Config(path=str(folder), shots=2, strength=0.1), "probe-top1"),
        (knn.Config(path=str(folder), k=3), "knn-top1"),
        (clustering.Config(path=str(folder)), "nmi"),
        (clustering.Config(path=str(folder)), "ari"),
        (anomaly.Config(path=str(folder), normal=["a", "b"]), "anomaly-auroc"),
    ):
        found = config.build().evaluate(ENCODER, Setting())
        assert found.metrics[metric] == pytest.approx(1.0)
        assert found.metrics["num_samples"] == 12


def test_shots_are_drawn_from_each_class(folder: Path) -> None:
    probe = linear_probe.Config(path=str(folder), shots=2, seed=1).build()
    assert probe.train.label.tolist() == [0, 0, 1, 1, 2, 2]
    keys = list(probe.train.images.keys)
    assert probe.train.images.image(1)[2, 0, 0] == 255 - int(Path(keys[1]).stem)
    other = linear_probe.Config(path=str(folder), shots=2, seed=2).build()
    assert keys != list(other.train.images.keys)
    with pytest.raises(UserError, match="has 6 training samples of 'a'; shots 7 needs as many"):
        linear_probe.Config(path=str(folder), shots=7).build()
    with pytest.raises(UserError, match="k 19 is more than the 18 training samples"):
        knn.Config(path=str(folder), k=19).build()
    with pytest.raises(UserError, match="normal class 'd' is none of"):
        anomaly.Config(path=str(folder), normal=["d"]).build()


@pytest.mark.parametrize("kind", [linear_probe, knn])
def test_splits_with_other_classes_are_refused(tmp_path: Path, kind: Any) -> None:
    """Folders are numbered by their names, so that class 1 would be another in each split."""
    write_folders(tmp_path / "train", ["a", "c"], images=2)
    write_folders(tmp_path / "test", ["a", "b"], images=2)
    with pytest.raises(UserError, match="has other classes in its training split than in its test"):
        kind.Config(path=str(tmp_path)).build()


def test_dedup_by_hand() -> None:
    rows = torch.tensor([[1.0, 0], [0.98, 0.199], [0, 1], [-1, 0], [0.6, 0.8]])
    found = dedup_result(rows, torch.tensor([0, 0, 1, 2, 3]), 0.9, list("abcd"))
    # nearest others: 0.98, 0.98, 0.8 (the last), 0 (the third), 0.8
    # One value for a group: its two images are found together.
    assert found.samples["duplicate_share"].tolist() == [1, 0, 0, 0]
    assert found.weights["duplicate_share"].tolist() == [2, 1, 1, 1]
    assert found.metrics["dedup-auroc"] == 1.0
    assert found.metrics["dedup-nearest_recall"] == 1.0
    assert found.metrics["duplicate_share"] == 0.4
    nothing = dedup_result(rows, torch.arange(5), 0.9, list("abcde"))
    assert "dedup-auroc" not in nothing.metrics
    # Of two as near, one of another group: a tie counts against the model.
    same = dedup_result(torch.ones(4, 2), torch.tensor([0, 0, 1, 2]), 0.9, list("abc"))
    assert same.metrics["dedup-nearest_recall"] == 0


def test_dedup_of_a_folder(tmp_path: Path) -> None:
    write_folders(tmp_path, ["a", "b"], images=2)
    write_folders(tmp_path, ["c"])
    (tmp_path / "c/0.png").write_bytes(solid((2, 0, 0)))
    assert LabeledConfig(str(tmp_path)).read().images.keys[::2] == ["a/0.png", "b/0.png", "c/0.png"]
    found = dedup.Config(path=str(tmp_path)).build().evaluate(ENCODER, Setting())
    assert found.metrics["dedup-auroc"] == 1.0
    assert found.keys == ["a/0.png", "b/0.png", "c/0.png"]


@pytest.mark.parametrize(("classes", "images"), [(["a"], 4), (["a", "b", "c"], 1)])
def test_clusters_that_agree_whatever_the_model_is_are_refused(
    tmp_path: Path, classes: list[str], images: int
) -> None:
    write_folders(tmp_path, classes, images=images)
    with pytest.raises(UserError, match="clusters agree with them whatever the model is"):
        clustering.Config(path=str(tmp_path)).build()


class Blind(Knowing):
    """Gives all images the same embedding."""

    def encode_image(self, images: Any) -> Tensor:
        return torch.tensor([[1.0, 0, 0]]).expand(len(images), 3)


def test_clusters_of_equal_embeddings_agree_with_the_classes_by_chance_only(folder: Path) -> None:
    found = clustering.Config(path=str(folder)).build().evaluate(Blind(["a"]), Setting())
    assert found.metrics["nmi"] == found.metrics["ari"] == 0


def test_a_sweep_ends_when_this_rank_has_to_stop(folder: Path) -> None:
    """A fit takes minutes at the size of ImageNet."""
    probe = linear_probe.Config(path=str(folder)).build()
    features = torch.eye(18)
    with pytest.raises(StopRequested, match="SIGTERM"):
        sweep(features, probe.train.label, 3, 0, Setting(stop_reason=lambda: "SIGTERM"))


def test_the_anomaly_score_is_the_mean_distance_to_the_nearest_normal_rows() -> None:
    normal = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    found = anomaly_score(normal, torch.tensor([[1.0, 0], [0.6, -0.8]]), 2)
    torch.testing.assert_close(found, torch.tensor([1 - 0.5, 1 + 0.0]))
