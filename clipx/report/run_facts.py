"""Facts about a run: progress, settings, code and hardware."""

from __future__ import annotations

import datetime
from typing import Any

from clipx.report.collect import Record, SetScores
from clipx.report.evaluation import chance_text, value_text
from clipx.report.formats import duration_text, exact_text
from clipx.report.model_outputs import ModelOutputs

SOFTWARE = ("clipx", "commit", "torch", "open_clip", "python")

Facts = list[tuple[str, str]]
"""(name, value) of each line."""


def tiles(record: Record, scores: dict[str, SetScores]) -> list[tuple[str, str, str]]:
    """(value, name, note) of the numbers at the top of the page."""
    tiles = []
    newest = record.newest_metrics
    num_samples = newest.get("samples_seen", 0)
    if newest:
        tiles.append((exact_text(newest["step"]), "steps", f"{num_samples:,} samples"))
    if "train/loss" in newest:
        tiles.append((exact_text(newest["train/loss"]), "newest loss", ""))
    names = {"zeroshot-top1": "zero-shot top-1", "text_to_image_R@1": "text to image R@1"}
    for metric, name in names.items():
        for set_name, metrics in scores.items():
            if metric in metrics:
                value = metrics[metric][-1].value
                chance = chance_text(metric, metrics)
                note = f"{set_name}\n{chance}" if chance else set_name  # each on a line
                tiles.append((value_text(metric, value), name, note))
                break  # the first set alone: a tile has room for one number
    seconds = record.training_seconds()
    if seconds:
        rate = f"{num_samples / seconds:,.0f} samples/s"
        tiles.append((duration_text(seconds), "training time", rate))
    tiles.append((f"{len(record.quarantine):,}", "bad samples", ""))
    return tiles


def facts(record: Record, outputs: ModelOutputs) -> Facts:
    facts = progress(record)
    if outputs.source:
        facts.append(("Checkpoint", outputs.source))
        facts.append(("Parameters", f"{outputs.num_parameters:,}"))

    # The most important settings.
    data = record.settings("data")
    settings = {
        "Architecture": record.settings("model").get("name"),
        "Data": data.get("shards") or data.get("sources"),
        "Loss": record.settings("loss").get("name"),
        "Global batch size": record.config.get("global_batch_size"),
        "Peak learning rate": record.settings("optim").get("lr"),
        "Precision": record.config.get("precision"),
        "Seed": record.config.get("seed"),
    }
    for name, value in settings.items():
        if value is not None:
            facts.append((name, number_or_text(value)))
    return facts + software(record)


def progress(record: Record) -> Facts:
    facts = [("Folder", str(record.path))]
    status = record.status
    newest = record.newest_metrics
    if newest:
        steps = exact_text(newest["step"])
        # A run that was killed early has no status yet, but its config has a duration.
        planned = status.get("total_steps") or record.config.get("duration")
        if planned:
            steps += f" of {number_or_text(planned)}"
        facts.append(("Steps", steps))
    if "samples_seen" in newest:
        samples = f"{newest['samples_seen']:,}"
        if "epoch" in newest:
            samples += f", {newest['epoch']:.2f} epochs"
        facts.append(("Samples seen", samples))
    seconds = record.training_seconds()
    if seconds:
        meaning = "without evaluations and checkpoints"
        facts.append(("Training time", f"{duration_text(seconds)} ({meaning})"))
    if "state" in status:
        reason = status.get("reason")
        facts.append(("State", f"{status['state']}: {reason}" if reason else status["state"]))
    for key, name in (("started", "Newest start"), ("updated", "Last sign of life")):
        if key in status:
            time = datetime.datetime.fromtimestamp(status[key], datetime.UTC)
            facts.append((name, f"{time:%Y-%m-%d %H:%M} UTC"))
    return facts


def number_or_text(value: Any) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))  # of a mapping of sources, their names
    return f"{value:,}" if isinstance(value, int) else str(value)


def software(record: Record) -> Facts:
    """Code and hardware of the newest start, from version.json."""
    if not record.versions:
        return [("Versions", "version.json is missing")]
    versions = []
    hardware = []
    # The hardware has no fixed list of names: a machine records what it has.
    for name, value in record.versions[-1].items():
        if name in SOFTWARE and value:
            version = str(value)
            if len(version) >= 40:  # a commit, with `+` if the work tree was changed
                version = version[:12] + ("+" if version.endswith("+") else "")
            versions.append(f"{name} {version}")
        elif name not in SOFTWARE and value is not None:
            hardware.append(f"{name} {value}")
    facts = [("Versions", ", ".join(versions))]
    if hardware:
        if record.status.get("host"):
            hardware.insert(0, f"host {record.status['host']}")
        facts.append(("Hardware", ", ".join(hardware)))
    if "memory_gib" in record.newest_metrics:
        facts.append(("Memory", f"{record.newest_metrics['memory_gib']:.1f} GiB at most"))
    facts.append(("Starts", f"{len(record.versions):,}"))
    commits = {str(version.get("commit")) for version in record.versions}
    if len(commits) > 1:
        facts.append(("Commits", f"{len(commits)} different ones over its starts"))
    return facts
