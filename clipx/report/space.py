"""The embedding space: similarities, maps and health."""

from __future__ import annotations

from clipx.evaluators import embedding_health
from clipx.report.page import Section, grid, missing, sub, table, text
from clipx.report.record import Record, SetScores, scores_of
from clipx.report.scores import point
from clipx.report.seen import Paired, Seen, evenly
from clipx.viz.line_chart import LineChart, Series
from clipx.viz.maps import centered, maps_of
from clipx.viz.markup import Markup, element, picture_uri, shorten
from clipx.viz.matrix import header_with_picture, matrix_table
from clipx.viz.scales import exact_text
from clipx.viz.scatter import apart, pair_map

CELLS, PAIRS, PICTURES = 9, 250, 40
"""Pairs of the similarity matrix, pairs of the maps, pictures on a map."""
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
CHARTS: dict[str, tuple[str, ...]] = {
    "Alignment": ("alignment",),
    "Modality gap": ("modality_gap",),
    "Uniformity": ("image_uniformity", "text_uniformity"),
    "Effective rank": ("image_effective_rank", "text_effective_rank"),
}


def is_health(found: SetScores) -> bool:
    return {"alignment", "modality_gap"} <= found.keys()


def section(record: Record, seen: Seen) -> Section:
    children: list[Markup] = []
    if seen.paired:
        paired = seen.paired[0]
        children += [sub("Similarity of some pairs"), similarity(paired)]
        children += [sub("Map"), *maps(paired)]
        children += [sub("Health at the newest checkpoint"), *health(paired)]
    otherwise = "No set of images with captions is here to look at the space with."
    children += map(missing, seen.missing("pairs", otherwise, there=bool(children)))
    return Section(
        "space", "Embedding space", [*children, sub("Health over time"), over_time(record)]
    )


def similarity(paired: Paired) -> Markup:
    rows = evenly(len(paired.image), CELLS)
    captions = paired.first_caption[rows]
    names = [shorten(paired.captioned.captions[int(m)], 60) for m in captions]
    return matrix_table(
        paired.text[captions] @ paired.image[rows].T,
        names,
        [
            header_with_picture(picture_uri(paired.captioned.images.shown(row)), name)
            for row, name in zip(rows, names, strict=True)
        ],
        shown=lambda value: f"{value:.2f}",
        title=f"Cosine of captions and images of {paired.name} (framed: pairs)",
        marked=[(n, n) for n in range(len(rows))],
    )


def maps(paired: Paired) -> list[Markup]:
    rows = evenly(len(paired.image), PAIRS)
    captions = paired.first_caption[rows]
    names = [shorten(paired.captioned.captions[int(m)], 80) for m in captions]
    features = centered(paired.image[rows], paired.text[captions])
    found, failures = maps_of(features)
    chosen = [apart(one, len(rows), PICTURES) for one in found]
    symbols = [symbol(paired, rows[n], n) for n in sorted({n for part in chosen for n in part})]
    drawn = [
        pair_map(one, names, {n: f"picture-{n}" for n in part})
        for one, part in zip(found, chosen, strict=True)
    ]
    told = (
        f"{len(rows):,} pairs of {paired.name}, each modality without its mean: with the means, "
        "the gap between images and texts would be all there is to see. Near is alike; a line "
        "joins an image and its text."
    )
    store = element("svg", *symbols, class_="hidden", aria_hidden="true")
    return [text(told), store, grid(*drawn, kind="maps"), *map(missing, failures)]


def symbol(paired: Paired, row: int, number: int) -> Markup:
    uri = picture_uri(paired.captioned.images.shown(row), size=48)
    image = element("image", href=uri, width=48, height=48)
    return element("symbol", image, id=f"picture-{number}", viewBox="0 0 48 48")


def health(paired: Paired) -> list[Markup]:
    if len(paired.image) < 2:
        return [missing("One pair is no space to look at.")]
    result = embedding_health.health(paired.image, paired.text[paired.first_caption])
    alarms = [element("p", alarm, class_="alarm") for alarm in result.alarms]
    rows = []
    for name, value in result.metrics.items():
        if name in MEANING:
            ends = result.intervals.get(name)
            told = (
                " to ".join(exact_text(end) for end in ends).replace(" ", "\u00a0") if ends else ""
            )
            rows.append([name.replace("_", " "), exact_text(value), told, MEANING[name]])
    title = f"{len(paired.image):,} pairs of {paired.name}"
    columns = ["measure", "value", "95 % interval", "meaning"]
    good = [] if alarms else [text("No alarm: nothing here looks like a collapse.")]
    return [*alarms, *good, table(columns, rows, title=title, numbers=[1])]


def over_time(record: Record) -> Markup:
    charts = []
    sets = {name: found for name, found in scores_of(record.results).items() if is_health(found)}
    for name, found in sets.items():
        for title, metrics in CHARTS.items():
            series = [
                Series(
                    m.removesuffix(title.lower().replace(" ", "_")).strip("_") or m,
                    [point(s) for s in found[m]],
                )
                for m in metrics
                if m in found
            ]
            if series and len(series[0].points) > 1:
                charts.append(LineChart(title, series, unit=name).figure())
    if charts:
        return grid(*charts)
    return missing(
        "Health was not measured more than once in training; an evaluator embedding_health with "
        "every=... does that."
    )
