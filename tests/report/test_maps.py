"""Maps of an embedding space."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clipx.report import maps
from clipx.report.maps import Projection, centered, pca, projections, t_sne, umap


def test_pca_is_the_best_plane_and_does_not_depend_on_the_sign_of_its_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(50, 2, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 4.0])
    basis = torch.linalg.qr(torch.randn(7, 2, generator=generator, dtype=torch.float64)).Q
    features = (wide - wide.mean(0)) @ basis.T
    projection = pca(features)
    products = features @ features.T  # they determine all distances
    assert torch.allclose(projection.place @ projection.place.T, products, atol=1e-9)
    shares = [int(re.search(r"(\d+)%", name)[1]) for name in projection.axes]  # type: ignore[index]
    assert sum(shares) in (99, 100, 101)
    flipped = pca(features @ torch.diag(torch.tensor([-1.0] * 7, dtype=torch.float64)))
    assert torch.allclose(projection.place.abs(), flipped.place.abs(), atol=1e-9)


def test_modalities_lose_their_means() -> None:
    image, text = torch.randn(20, 5) + 3, torch.randn(20, 5) - 2
    rows = centered(image, text)
    assert torch.allclose(rows[:20].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(rows[20:].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_of_few_rows_exists(count: int) -> None:
    done, failures = projections(centered(torch.randn(count, 4), torch.randn(count, 4)))
    assert failures == []
    assert done[0].place.shape == (2 * count, 2)
    assert done[0].place.isfinite().all()
    assert "nan" not in "".join(done[0].axes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draw", [t_sne, pytest.param(umap, marks=pytest.mark.slow)])
def test_a_map_keeps_clusters_apart_and_is_the_same_again(
    draw: Callable[[Tensor], Projection],
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 6, generator=generator) * 0.05
    noise[:20, 0] += 1
    noise[20:, 1] += 1
    place = draw(noise.double()).place
    inside = torch.cdist(place[:20], place[:20]).max()
    assert torch.cdist(place[:20], place[20:]).min() > 0.2 * inside
    assert torch.equal(place, draw(noise.double()).place)


def test_a_map_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def t_sne(_: Tensor) -> Projection:
        raise TypeError("check_array() got an unexpected keyword")

    monkeypatch.setattr(maps, "t_sne", t_sne)
    monkeypatch.setattr(maps, "find_spec", lambda _: None)
    done, failures = projections(centered(torch.randn(20, 4), torch.randn(20, 4)))
    assert [one.name for one in done] == ["PCA"]
    assert failures == ["t_sne drew no map: TypeError: check_array() got an unexpected keyword"]
