"""Charts, matrices and maps: where the marks are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clipx.viz import maps
from clipx.viz.line_chart import MOST_POINTS, LineChart, Point, Series, thinned
from clipx.viz.maps import Map, centered, maps_of, pca, t_sne, umap
from clipx.viz.matrix import matrix_table
from clipx.viz.scatter import EDGE, HEIGHT, WIDTH, apart, pair_map


def lines_of(html: str) -> list[list[tuple[float, float]]]:
    """The corners of every curve."""
    found = re.findall(r'<polyline points="([^"]+)"', html)
    return [[tuple(map(float, p.split(","))) for p in one.split()] for one in found]  # type: ignore[misc]


def test_a_curve_falls_where_its_values_do() -> None:
    points = [Point(float(n), 10.0 - n) for n in range(5)]
    (line,) = lines_of(LineChart("t", [Series("loss", points)]).figure())
    xs, ys = [x for x, _ in line], [y for _, y in line]
    assert xs == sorted(xs)
    assert ys == sorted(ys)  # pixels grow downwards
    gaps = [b - a for a, b in pairwise(xs)]
    assert max(gaps) - min(gaps) < 0.2


def test_a_curve_is_broken_where_a_value_is_missing() -> None:
    values = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0]
    points = [Point(float(n), v) for n, v in enumerate(values)]
    lines = lines_of(LineChart("t", [Series("loss", points)]).figure())
    assert [len(line) for line in lines] == [2, 2, 1]


def test_a_long_curve_keeps_its_mean_and_its_range() -> None:
    points = [Point(float(n), float((n * 7919) % 101)) for n in range(12 * MOST_POINTS)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert sum(p.y for p in thin) / len(thin) == pytest.approx(
        sum(p.y for p in points) / len(points)
    )
    assert max(p.high for p in thin) == max(p.y for p in points)
    assert min(p.low for p in thin) == min(p.y for p in points)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_a_chart_without_values_and_with_one_says_so_and_stands() -> None:
    assert "No finite value" in LineChart("t", [Series("a", [])]).figure()
    assert len(lines_of(LineChart("t", [Series("a", [Point(3, 4)])]).figure())) == 1


def test_a_matrix_shades_by_value_and_frames_what_is_marked() -> None:
    values = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    html = matrix_table(values, ["a", "b"], ["c", "d"], shown=str, title="t", marked=[(1, 0)])
    assert re.findall(r"--share:(\d+)%", html) == ["0", "55", "28", "14"]
    assert re.findall(r'class="cell([^"]*)"', html) == ["", "", " marked", ""]


def test_pca_is_the_best_plane_and_does_not_depend_on_the_sign_of_its_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(50, 2, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 4.0])
    basis = torch.linalg.qr(torch.randn(7, 2, generator=generator, dtype=torch.float64)).Q
    features = (wide - wide.mean(0)) @ basis.T
    found = pca(features)
    products = features @ features.T  # which tell all distances
    assert torch.allclose(found.place @ found.place.T, products, atol=1e-9)
    shares = [int(re.search(r"(\d+)%", name)[1]) for name in found.axes]  # type: ignore[index]
    assert sum(shares) in (99, 100, 101)
    flipped = pca(features @ torch.diag(torch.tensor([-1.0] * 7, dtype=torch.float64)))
    assert torch.allclose(found.place.abs(), flipped.place.abs(), atol=1e-9)


def test_modalities_lose_their_means() -> None:
    image, text = torch.randn(20, 5) + 3, torch.randn(20, 5) - 2
    rows = centered(image, text)
    assert torch.allclose(rows[:20].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(rows[20:].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_of_few_rows_exists(count: int) -> None:
    found, _ = maps_of(centered(torch.randn(count, 4), torch.randn(count, 4)))
    assert found[0].place.shape == (2 * count, 2)
    assert found[0].place.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draw", [t_sne, umap])
def test_a_map_keeps_clusters_apart_and_is_the_same_again(draw: Callable[[Tensor], Map]) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 6, generator=generator) * 0.05
    noise[:20, 0] += 1
    noise[20:, 1] += 1
    place = draw(noise.double()).place
    inside = torch.cdist(place[:20], place[:20]).max()
    assert torch.cdist(place[:20], place[20:]).min() > 0.2 * inside
    assert torch.equal(place, draw(noise.double()).place)


def test_a_map_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Tensor) -> Map:
        raise TypeError("check_array() got an unexpected keyword")

    monkeypatch.setattr(maps, "OTHERS", {"sklearn": broken})
    found, failures = maps_of(centered(torch.randn(20, 4), torch.randn(20, 4)))
    assert [one.name for one in found] == ["PCA"]
    assert failures == ["sklearn drew no map: TypeError: check_array() got an unexpected keyword"]


def test_a_map_draws_each_image_and_each_text_once_and_inside() -> None:
    found = pca(centered(torch.randn(30, 8), torch.randn(30, 8)))
    names = [f"caption {n}" for n in range(30)]
    html = pair_map(found, names, {4: "p4"})
    for n in range(30):
        assert html.count(f"<title>image: caption {n}</title>") == 1
        assert html.count(f"<title>text: caption {n}</title>") == 1
    assert html.count('href="#p4"') == 1
    for x, y in re.findall(r'cx="([\d.-]+)" cy="([\d.-]+)"', html):
        assert EDGE <= float(x) <= WIDTH - EDGE
        assert EDGE <= float(y) <= HEIGHT - EDGE


def test_pictures_on_a_map_do_not_overlap() -> None:
    found = pca(centered(torch.randn(300, 8), torch.randn(300, 8)))
    chosen = apart(found, 300, 25)
    assert 5 < len(chosen) <= 25
    assert max(chosen) < 300
