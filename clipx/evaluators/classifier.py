"""Zero-shot classifiers from class names and prompts, and the accuracy of any classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from clipx import metrics
from clipx.data.class_lists import TEMPLATES, known_templates
from clipx.evaluators.distributed import embed_texts, exchange
from clipx.evaluators.labeled_set import LabeledSet
from clipx.evaluators.test_sets import read_lines
from clipx.files import write_whole
from clipx.types import ImageTextEncoder, Result, Setting, UserError

PROMPTS = 8192  # embedded before they are averaged: the 80,000 of ImageNet need not be held


Templates = str | list[str] | None
"""The type of a setting: one of class_lists.TEMPLATES, a file with one prompt a line, a list of
prompts, or null for those of the set."""


def read_templates(path: Path | None, templates: Templates) -> list[str]:
    """Prompts with {c} or {} for the class name. Raises UserError.

    path: of the set; None for a source, whose own prompts are the class name alone
    """
    if isinstance(templates, list):
        if not templates:
            raise UserError("templates is an empty list; give one prompt at least, such as '{c}'")
        _check_templates(templates)
        return templates
    if templates in TEMPLATES:
        return known_templates(templates)
    if path is None and templates is None:
        return ["{c}"]
    if templates is not None:
        file = Path(templates)
    else:
        assert path is not None, "else returned above"
        file = path / "zeroshot_classification_templates.txt"
    # Class folders of other origin have no such file, and users do not know its name.
    if templates is None and not file.exists():
        raise UserError(
            f"test set file {file} cannot be read: No such file or directory; write prompts with "
            f"{{c}} into it, or set templates={' or '.join(TEMPLATES)}"
        )
    prompts = read_lines(file)
    _check_templates(prompts)
    return prompts


def _check_templates(templates: Sequence[str]) -> None:
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise UserError(
                f"prompt template {template!r} has no place for the class name; "
                "write {c} where it belongs"
            )


def classifier(
    encoder: ImageTextEncoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    setting: Setting | None = None,
) -> Tensor:
    """(C, D) unit rows: for each class, the normalized mean of its normalized prompt embeddings
    (arXiv:2103.00020, 3.1.4)."""
    setting = setting or Setting()
    _check_templates(templates)
    if setting.cache is None:
        return _embed_classes(encoder, class_names, templates, setting)
    # All that determines the classifier. The empty line separates templates and class names.
    text = "\n".join([encoder.text_digest(), *templates, "", *class_names])
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = setting.cache / f"{digest[:32]}.safetensors"
    # Rank 0 reads the file for all: another one may see it a moment later on a shared disk.
    cached = None
    if setting.ranks.rank == 0 and file.exists():
        cached = load_file(file)["classifier"]
    cached = exchange(setting, cached)[0]
    if cached is not None:
        return cached
    weights = _embed_classes(encoder, class_names, templates, setting)
    if setting.ranks.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, save({"classifier": weights.contiguous()}))
    return weights


def _embed_classes(
    encoder: ImageTextEncoder,
    class_names: Sequence[str],
    templates: Sequence[str],
    setting: Setting,
) -> Tensor:
    # Classes of the same name get the same row, bit by bit, and are embedded once.
    distinct = list(dict.fromkeys(class_names))
    classes_per_step = max(1, PROMPTS // len(templates))
    rows = []
    for start in range(0, len(distinct), classes_per_step):
        names = distinct[start : start + classes_per_step]
        prompts = []
        for name in names:
            for template in templates:
                prompts.append(template.replace("{c}", name).replace("{}", name))
        embeddings = embed_texts(encoder, prompts, setting)
        by_class = embeddings.view(len(names), len(templates), -1)
        means = by_class.mean(1)
        rows.append(F.normalize(means, dim=-1))
    row_of = {name: row for row, name in enumerate(distinct)}
    return torch.cat(rows)[[row_of[name] for name in class_names]]


def nearest_class_hits(features: Tensor, classes: Tensor, label: Tensor) -> Tensor:
    """(N,) float64, 1 where the class of the label is the nearest.

    features: (N, D); classes: (C, D); label: (N,) int64
    """
    ids = metrics.row_ids(classes)  # classes of equal names have equal rows
    scores = metrics.similarities(features, classes, ids)
    return metrics.top_k_hits(scores, label, 1, ids).double()


def add_accuracy(
    result: Result,
    prefix: str,
    scores: Tensor,
    labeled: LabeledSet,
    ids: Tensor | None = None,
) -> None:
    """Add top-1 and top-5 accuracy and mean per-class recall.

    scores: (N, C); ids: (C,) as of metrics.top_k_hits
    """
    label = labeled.label
    for k in (1, 5):
        metrics.add_rate(result, f"{prefix}-top{k}", metrics.top_k_hits(scores, label, k, ids))

    # Images are drawn within classes, so the interval is that of a mean of rates.
    predicted = metrics.predictions(scores, label, ids)
    recall = metrics.mean_per_class_recall(predicted, label, len(labeled.names))
    interval = metrics.class_mean_interval(predicted == label, label, result.clusters)
    result.add(f"{prefix}-mean_per_class_recall", recall, interval)
    result.add("num_samples", len(label))
    result.add("num_classes", len(labeled.names))  # from which reports have the chance level
