"""Which classes a model knows and which it takes for which others, with pictures."""

from __future__ import annotations

from collections import Counter

import torch

from clipx.evaluators.zero_shot import per_class
from clipx.report.page import Section, grid, missing, sub, text
from clipx.report.seen import Classified, Seen, evenly
from clipx.viz.markup import Markup, element, join, picture_uri, shorten
from clipx.viz.matrix import matrix_table
from clipx.viz.scales import percent_text

CLASSES, PICTURES, EXAMPLES = 6, 3, 8
"""Shown: best and worst classes, pictures of each, right and wrong examples."""
CONFUSED, COLUMNS, LEAST = 8, 10, 3
"""Rows and columns of a confusion matrix, and images in a class without which there is none."""


def section(seen: Seen) -> Section:
    children: list[Markup] = []
    for found in seen.classified:
        children += [sub(found.name), text(summary(found)), *of_set(found)]
    otherwise = "The run has no zero_shot evaluator."
    children += map(missing, seen.missing("classes", otherwise, there=bool(children)))
    return Section("classes", "Classes", children)


def summary(found: Classified) -> str:
    count, label = len(found.labeled), found.labeled.label
    right = int((found.predicted == label).sum())
    of = f" (every {found.total / count:.0f}th of {found.total:,})" if found.total > count else ""
    return (
        f"{right:,} of {count:,} images{of} are put into the right one of "
        f"{len(found.labeled.names):,} classes: {found.accuracy:.1%}."
    )


def of_set(found: Classified) -> list[Markup]:
    rows = ranked(found)
    worst, best = rows[:CLASSES], rows[::-1][:CLASSES]
    out = []
    kind = "cards" if max(row["samples"] for row in rows) > 1 else "cards few"
    if len(rows) > 1:
        half = min(CLASSES, len(rows) // 2)
        out += [minor("Worst classes"), grid(*(card(found, r) for r in worst[:half]), kind=kind)]
        out += [minor("Best classes"), grid(*(card(found, r) for r in best[:half]), kind=kind)]
    right = found.predicted == found.labeled.label
    for title, rights in (("Right", right), ("Wrong", ~right)):
        numbers = rights.nonzero().flatten().tolist()
        chosen = [numbers[n] for n in evenly(len(numbers), EXAMPLES)]
        told = f"{title}: {len(chosen)} of {len(numbers):,}, evenly spaced"
        strip = element("div", *(example(found, n, truth=True) for n in chosen), class_="strip")
        out += [minor(told), strip if chosen else missing("None.")]
    return [*out, minor("Confusion of the worst classes"), confusion(found, rows)]


def minor(title: str) -> Markup:
    return element("h4", title, class_="minor")


def ranked(found: Classified) -> list[dict]:
    """Of `per_class`, worst first; equal ones by the probability of the right class, its mean."""
    label, names = found.labeled.label, found.labeled.names
    own = found.probability[torch.arange(len(label)), label].double()
    total = torch.bincount(label, own, minlength=len(names))
    mean = (total / torch.bincount(label, minlength=len(names)).clamp(min=1)).tolist()
    number = {name: n for n, name in enumerate(names)}
    rows = per_class(found.predicted, label, names)
    rows = [row | {"number": number[row["class"]]} for row in rows]
    return sorted(rows, key=lambda row: (row["recall"], mean[row["number"]]))


def card(found: Classified, row: dict) -> Markup:
    numbers = (found.labeled.label == row["number"]).nonzero().flatten().tolist()
    right = round(row["recall"] * row["samples"])
    # Without its interval: that of a class chosen for being the best or the worst would be too far
    # out. tables/SET.json has those of all classes.
    counts = f"{right} of {row['samples']} right: {row['recall']:.0%}"
    pictures = [example(found, numbers[n]) for n in evenly(len(numbers), PICTURES)]
    return element(
        "div",
        element("h4", row["class"]),
        element("p", counts, class_="note"),
        element("div", *pictures, class_="strip"),
        class_="card",
    )


def example(found: Classified, number: int, *, truth: bool = False) -> Markup:
    """A picture with the guess; truth: name the right class too."""
    names, label = found.labeled.names, int(found.labeled.label[number])
    guess = int(found.predicted[number])
    sure = percent_text(float(found.probability[number, guess]))
    mark = "✓" if guess == label else "✗"
    told = f"{mark} {shorten(names[guess], 40)}, {sure}"
    uri = picture_uri(found.labeled.images.shown(number))
    caption = element("figcaption", element("span", told, class_="guess"))
    if truth and guess != label:
        real = element("span", shorten(names[label], 40), class_="truth")
        caption = element("figcaption", real, element("span", told, class_="guess"))
    picture = element("img", src=uri, alt=names[label], title=names[label])
    return element("figure", picture, caption, class_="right" if guess == label else "wrong")


def confusion(found: Classified, rows: list[dict]) -> Markup:
    """Of the worst classes that have images enough, by the classes that they are taken for."""
    names, label, predicted = found.labeled.names, found.labeled.label, found.predicted
    worst = [r["number"] for r in rows if r["samples"] >= LEAST and r["recall"] < 1][:CONFUSED]
    if not worst:
        most = max(row["samples"] for row in rows)
        few = f"No class has {LEAST} images, which a confusion matrix needs to tell anything."
        return missing(few if most < LEAST else "No class is ever taken for another.")
    taken = {row: Counter(predicted[label == row].tolist()) for row in worst}
    often = sum(taken.values(), Counter())
    columns = sorted((n for n, _ in often.most_common(COLUMNS)), key=lambda n: names[n])
    values = torch.tensor([[taken[r][c] for c in columns] for r in worst])
    rest = torch.tensor([sum(taken[r].values()) for r in worst]) - values.sum(1)
    marked = [(r, columns.index(row)) for r, row in enumerate(worst) if row in columns]
    return matrix_table(
        torch.cat([values, rest[:, None]], 1).double(),
        [shorten(names[row], 40) for row in worst],
        [*(shorten(names[c], 24) for c in columns), join("others")],
        shown=lambda value: f"{value:.0f}" if value else "",
        title="Rows: what it is; columns: what it is taken for (images; framed: right)",
        marked=marked,
        span=(0.0, float(values.max())),
    )
