"""Retrieval as a person sees it: a caption and the pictures that it finds, and the other way."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.report.page import Section, missing, sub, text
from clipx.report.seen import Paired, Seen, evenly
from clipx.viz.markup import Markup, element, picture_uri, shorten

QUERIES, FOUND = 6, 5
"""Queries shown in each direction, and what is shown of the best of each."""


def section(seen: Seen) -> Section:
    children: list[Markup] = []
    for paired in seen.paired:
        children += [sub(paired.name), text(summary(paired))]
        children += [by_caption(paired, m) for m in queries(len(paired.text))]
        children += [by_image(paired, n) for n in queries(len(paired.image), shift=True)]
    otherwise = "The run has no retrieval evaluator."
    children += map(missing, seen.missing("pairs", otherwise, there=bool(children)))
    return Section("retrieval", "Retrieval", children)


def queries(count: int, *, shift: bool = False) -> list[int]:
    """Evenly spaced; shift: from between the others, so that both directions show other pairs."""
    step = count // QUERIES // 2 if shift else 0
    return [min(count - 1, n + step) for n in evenly(count, QUERIES)]


def summary(paired: Paired) -> str:
    count = len(paired.image)
    of = f", evenly spaced out of {paired.total:,}" if paired.total > count else ""
    return (
        f"Found among {count:,} images{of} and {len(paired.text):,} captions. The queries are "
        "evenly spaced over the set, not chosen by how well they do. The right one is marked; "
        "where it is not among the best five, it stands at the end with its rank."
    )


def rank_of(scores: Tensor, right: Tensor) -> tuple[int, int]:
    """(number, rank from 1) of the best of the right candidates; ties count against it.

    scores: (N,); right: (N,) bool
    """
    best = int(scores.masked_fill(~right, -torch.inf).argmax())
    return best, 1 + int(((scores >= scores[best]) & ~right).sum())


def by_caption(paired: Paired, number: int) -> Markup:
    captioned = paired.captioned
    scores = paired.image @ paired.text[number]
    right = torch.arange(len(scores)) == captioned.owner[number]
    best, rank = rank_of(scores, right)
    order = scores.topk(min(FOUND, len(scores))).indices.tolist()
    shown = [picture(paired, n, f"{float(scores[n]):.2f}", right=bool(right[n])) for n in order]
    if best not in order:
        shown.append(picture(paired, best, f"rank {rank:,}", right=True))
    asked = element("div", f"“{captioned.captions[number]}”", class_="asked")
    return element("div", asked, element("div", *shown, class_="strip"), class_="query")


def picture(paired: Paired, number: int, told: str, *, right: bool) -> Markup:
    alt = shorten(paired.captioned.captions[int(paired.first_caption[number])], 120)
    image = element("img", src=uri(paired, number), alt=alt, title=alt)
    caption = element("figcaption", f"✓ {told}" if right else told)
    return element("figure", image, caption, class_="right" if right else None)


def by_image(paired: Paired, number: int) -> Markup:
    captioned = paired.captioned
    scores = paired.text @ paired.image[number]
    right = captioned.owner == number
    best, rank = rank_of(scores, right)
    order = scores.topk(min(FOUND, len(scores))).indices.tolist()
    lines = [(place, m) for place, m in enumerate(order, 1)]
    if not right[order].any():
        lines.append((rank, best))
    items = [
        element(
            "li",
            ("✓ " if right[m] else "") + shorten(captioned.captions[m], 160),
            element("span", f" {float(scores[m]):.2f}", class_="note"),
            value=place,
            class_="right" if right[m] else None,
        )
        for place, m in lines
    ]
    alt = f"query image {captioned.images.keys[number]}"
    image = element("img", src=uri(paired, number), alt=alt)
    return element("div", element("div", image), element("ol", *items), class_="query")


def uri(paired: Paired, number: int) -> str:
    return picture_uri(paired.captioned.images.shown(number))
