"""Macros of the page: shades of a matrix, marks of a map."""

from __future__ import annotations

import re

import torch
from html_checks import checked

from clipx.report import maps
from clipx.report.maps import centered, map_pairs, pca
from clipx.report.write import template_environment

MATRIX = {
    "rows": ["a", "b and <b>"],
    "columns": ["c", "d", "e"],
    "pictures": [],
    "values": [[0.0, 1.0, 4.0], [0.5, 0.25, 1.0]],
    "marked": [(1, 0)],
    "low": 0,
    "high": 1,
}


def test_a_matrix_shades_by_value_and_frames_the_marked_cells() -> None:
    macros = template_environment().get_template("parts.html.j2").module
    html = macros.matrix("t", MATRIX, 24, 40, zero="")  # type: ignore[attr-defined]
    assert re.findall(r"--share:(\d+)%", html) == ["0", "55", "55", "28", "14", "55"]
    assert re.findall(r'class="cell([^"]*)"', html) == ["", "", "", " marked", "", ""]
    assert re.findall(r"%\">([^<]*)</td>", html) == ["", "1.0", "4.0", "0.5", "0.25", "1.0"]
    assert "b and <b>" in checked(html).texts


def test_a_map_draws_each_image_and_each_text_once() -> None:
    projection = pca(centered(torch.randn(30, 8), torch.randn(30, 8)))
    pairs = map_pairs(projection, [f"caption {n}" for n in range(30)], max_pictures=4)
    macros = template_environment().get_template("charts.svg.j2").module
    html = macros.pair_map(projection, pairs, maps)  # type: ignore[attr-defined]
    for number, pair in enumerate(pairs):
        assert html.count(f"<title>image: {pair.name}</title>") == 1
        assert html.count(f"<title>text: {pair.name}</title>") == 1
        assert html.count(f'href="#picture-{number}"') == pair.has_picture
    assert html.count("<use ") == 4
