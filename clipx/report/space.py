"""The embedding space: cosines of some pairs, maps, and health now and over time."""

from __future__ import annotations

from typing import Any

from clipx.evaluators import embedding_health
from clipx.evaluators.test_sets import evenly_spaced
from clipx.report.charts import LineChart
from clipx.report.collect import SetScores
from clipx.report.evaluation import score_chart
from clipx.report.formats import picture_uri
from clipx.report.maps import centered, map_pairs, projections
from clipx.report.model_outputs import Paired

NUM_CELLS = 9  # rows and columns of the matrix of cosines
MAX_PAIRS = 250  # on a map
MAX_PICTURES = 40  # on a map

MEANING = {
    "alignment": "mean squared distance of matching pairs, 0 to 4; lower is better",
    "modality_gap": "distance of the mean image and the mean text, 0 to 2",
    "hubness": "about 0 where every image is found as often, large where a few are always found",
    "image_uniformity": "0 where all are one point, near -4 where evenly spread",
    "text_uniformity": "0 where all are one point, near -4 where evenly spread",
    "image_effective_rank": "dimensions in use",
    "text_effective_rank": "dimensions in use",
    "image_mean_norm": "0 where directions cancel out, 1 where all are alike",
    "text_mean_norm": "0 where directions cancel out, 1 where all are alike",
    "image_dead_share": "share of the dimensions that hardly vary",
    "text_dead_share": "share of the dimensions that hardly vary",
}
CHARTS = {  # title -> metric -> name of the series
    "Alignment": {"alignment": "alignment"},
    "Modality gap": {"modality_gap": "modality_gap"},
    "Uniformity": {"image_uniformity": "image", "text_uniformity": "text"},
    "Effective rank": {"image_effective_rank": "image", "text_effective_rank": "text"},
}


def space_report(paired: Paired) -> dict[str, Any]:
    """Values for page.html.j2. health: None for a single pair, on which it is not defined"""
    # Lines and pictures of more pairs would cover one another.
    rows = evenly_spaced(len(paired.image), MAX_PAIRS)
    features = centered(paired.image[rows], paired.text[paired.first_caption[rows]])
    projected, failures = projections(features)
    names = [paired.caption_of(row) for row in rows]
    maps = []
    pictures = {}
    for projection in projected:
        pairs = map_pairs(projection, names, max_pictures=MAX_PICTURES)
        maps.append((projection, pairs))
        # The maps share the pictures, so that each is in the file once.
        for number, pair in enumerate(pairs):
            if pair.has_picture and number not in pictures:
                image = paired.captioned.images.shown(rows[number])
                pictures[number] = picture_uri(image, size=48)
    health = None
    if len(paired.image) > 1:
        health = embedding_health.health(paired.image, paired.text[paired.first_caption])

    shown = evenly_spaced(len(paired.image), NUM_CELLS)
    captions = []
    cell_pictures = []
    diagonal = []
    for number, row in enumerate(shown):
        captions.append(paired.caption_of(row))
        cell_pictures.append(picture_uri(paired.captioned.images.shown(row)))
        diagonal.append((number, number))
    cosines = paired.text[paired.first_caption[shown]] @ paired.image[shown].T
    similarity = {
        "rows": captions,
        "columns": captions,
        "pictures": cell_pictures,
        "values": cosines.tolist(),
        "marked": diagonal,
        "low": float(cosines.min()),
        "high": float(cosines.max()),
    }
    return {
        "name": paired.name,
        "num_pairs": len(paired.image),
        "num_pairs_on_maps": len(rows),
        "similarity": similarity,
        "maps": maps,
        "pictures": pictures,
        "failures": failures,
        "health": health,
        "meaning": MEANING,
    }


def health_over_time(scores: dict[str, SetScores]) -> list[LineChart]:
    """Charts of each set whose health was measured more than once."""
    charts = []
    for name, metrics in scores.items():
        if "alignment" in metrics and "modality_gap" in metrics:
            for title, series in CHARTS.items():
                charts += score_chart(title, metrics, series, unit=name)
    return charts
