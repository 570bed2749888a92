"""What a model gets right and wrong in zero-shot classification, with pictures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from clipx.evaluators.test_sets import evenly_spaced
from clipx.evaluators.zero_shot import per_class
from clipx.report.formats import percent_text, picture_uri
from clipx.report.model_outputs import Classified

MAX_CLASSES = 6  # of the worst and of the best
MAX_PICTURES = 3  # of a class
MAX_EXAMPLES = 8  # of right and of wrong images
MAX_CONFUSED = 8  # rows of the confusion matrix
MAX_TAKEN_FOR = 10  # its columns
MIN_IMAGES = 3  # of a class in the confusion matrix

Entries = dict[str, Any]
"""Values for page.html.j2, by name."""


def class_report(outputs: Classified) -> Entries:
    label = outputs.labeled.label
    names = outputs.labeled.names
    is_right = outputs.predicted == label
    right = is_right.nonzero().flatten().tolist()
    wrong = (~is_right).nonzero().flatten().tolist()

    # Classes of equal recall are ordered by the mean probability of the right class.
    probability = outputs.probability[torch.arange(len(label)), label].double()
    total = torch.bincount(label, probability, minlength=len(names))
    mean = total / torch.bincount(label, minlength=len(names)).clamp(min=1)
    numbers = {name: number for number, name in enumerate(names)}  # of equal names the last
    ranked = per_class(outputs.predicted, label, names)
    for row in ranked:
        row["number"] = numbers[row["class"]]
    ranked.sort(key=lambda row: (row["recall"], float(mean[row["number"]])))
    num_shown = min(MAX_CLASSES, len(ranked) // 2)  # no class is both among the worst and the best
    worst = ranked[:num_shown]
    best = ranked[::-1][:num_shown]
    cards = [class_card(outputs, row) for row in worst + best]
    return {
        "name": outputs.name,
        "num_right": len(right),
        "num_wrong": len(wrong),
        "num_classes": len(names),
        "set_size": outputs.set_size,
        "max_images": int(label.bincount().max()),
        "worst": cards[:num_shown],
        "best": cards[num_shown:],
        "right": examples(outputs, right, MAX_EXAMPLES),
        "wrong": examples(outputs, wrong, MAX_EXAMPLES),
        "confusion": confusion(outputs, ranked),
    }


def class_card(outputs: Classified, row: Entries) -> Entries:
    images = (outputs.labeled.label == row["number"]).nonzero().flatten().tolist()
    num_right = round(row["recall"] * row["samples"])
    # No interval: one of a class that was chosen for being extreme would be too far out.
    # tables/SET.json of `clipx eval --out` has those of all classes.
    counts = f"{num_right} of {row['samples']} right: {row['recall']:.0%}"
    pictures = examples(outputs, images, MAX_PICTURES)
    return {"name": row["class"], "counts": counts, "examples": pictures}


def examples(outputs: Classified, images: list[int], limit: int) -> list[Entries]:
    """At most `limit` of these images, each with the guess and its probability."""
    names = outputs.labeled.names
    chosen = []
    # Evenly spaced, since examples that are chosen by how well they do would mislead.
    for place in evenly_spaced(len(images), limit):
        image = images[place]
        guess = int(outputs.predicted[image])
        example = {
            "uri": picture_uri(outputs.labeled.images.shown(image)),
            "truth": names[int(outputs.labeled.label[image])],
            "guess": names[guess],
            "probability": percent_text(float(outputs.probability[image, guess])),
        }
        chosen.append(example)
    return chosen


def confusion(outputs: Classified, ranked: list[Entries]) -> Entries | None:
    """Counts of the worst classes, by the classes that they are taken for; None if no class with
    enough images is ever taken for another."""
    names = outputs.labeled.names
    counts: dict[int, Counter[int]] = {}  # class -> predicted class -> images
    total: Counter[int] = Counter()
    for row in ranked:
        number = row["number"]
        if row["samples"] >= MIN_IMAGES and row["recall"] < 1 and len(counts) < MAX_CONFUSED:
            predicted = outputs.predicted[outputs.labeled.label == number]
            counts[number] = Counter(predicted.tolist())
            total += counts[number]
    if not counts:
        return None
    most_common = dict(total.most_common(MAX_TAKEN_FOR))
    columns = sorted(most_common, key=lambda number: names[number])

    values = []
    marked = []
    high = 0
    for number, count in counts.items():
        row = [count[column] for column in columns]
        if number in columns:
            marked.append((len(values), columns.index(number)))
        high = max(high, *row)
        # The sum of all other classes may exceed `high`: its shade is compared with none.
        values.append([*row, count.total() - sum(row)])
    return {
        "rows": [names[number] for number in counts],
        "columns": [*(names[number] for number in columns), "others"],
        "pictures": [],
        "values": values,
        "marked": marked,
        "low": 0,
        "high": high,
    }
