"""What was run, by which code, on what, for how long."""

from __future__ import annotations

import datetime
from typing import Any

from clipx.report.page import Section, details, facts
from clipx.report.record import Record, settings
from clipx.viz.markup import Markup, element
from clipx.viz.scales import exact_text


def section(record: Record, model: list[tuple[str, str]]) -> Section:
    """model: (name, value) of what the checkpoint tells"""
    pairs = [*progress(record), *model, *setup(record.config), *software(record)]
    children: list[Markup] = [facts(pairs)]
    if record.config_yaml:
        children.append(details("The whole config", element("pre", record.config_yaml)))
    return Section("facts", "The run", children)


def progress(record: Record) -> list[tuple[str, str]]:
    out = [("Folder", str(record.path))]
    status, last = record.status, record.metrics[-1] if record.metrics else {}
    planned = status.get("total_steps") or record.config.get("duration")
    step = last.get("step")
    if step is not None:
        of = f" of {exact_text(planned) if isinstance(planned, int) else planned}"
        out.append(("Steps", f"{exact_text(step)}{of if planned else ''}"))
    if "samples_seen" in last:
        epochs = f", {last['epoch']:.2f} epochs" if "epoch" in last else ""
        out.append(("Samples seen", f"{last['samples_seen']:,}{epochs}"))
    if seconds := training_seconds(record):
        told = "without evaluations and checkpoints, from the logged samples/s"
        out.append(("Training time", f"{clock(seconds)} ({told})"))
    if "state" in status:
        reason = f": {status['reason']}" if status.get("reason") else ""
        out.append(("State", f"{status['state']}{reason}"))
    for key, name in (("started", "Newest start"), ("updated", "Last sign of life")):
        if isinstance(status.get(key), int | float):
            when = datetime.datetime.fromtimestamp(status[key], datetime.UTC)
            out.append((name, f"{when:%Y-%m-%d %H:%M} UTC"))
    return out


def setup(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings that one asks for first."""
    data, loss = settings(config, "data"), config.get("loss")
    found: list[tuple[str, Any]] = [
        ("Architecture", settings(config, "model").get("name")),
        ("Data", data.get("shards") or data.get("sources")),
        ("Loss", loss.get("name") if isinstance(loss, dict) else loss),
        ("Global batch size", config.get("global_batch_size")),
        ("Peak learning rate", settings(config, "optim").get("lr")),
        ("Precision", config.get("precision")),
        ("Seed", config.get("seed")),
    ]
    return [(name, _words(value)) for name, value in found if value is not None]


def software(record: Record) -> list[tuple[str, str]]:
    """Of the newest start; code and hardware as version.json has them."""
    if not record.versions:
        return [("Versions", "version.json is missing")]
    newest = record.versions[-1]
    soft = ("clipx", "commit", "torch", "open_clip", "python")
    out = [("Versions", ", ".join(f"{n} {_short(str(newest[n]))}" for n in soft if newest.get(n)))]
    if hard := [f"{k} {v}" for k, v in newest.items() if k not in soft and v is not None]:
        host = record.status.get("host")
        out.append(("Hardware", ", ".join([*([f"host {host}"] if host else []), *hard])))
    memory = record.metrics[-1].get("memory_gib") if record.metrics else None
    if memory is not None:
        out.append(("Memory", f"{memory:.1f} GiB at most"))
    out.append(("Starts", f"{len(record.versions):,}"))
    commits = {str(v.get("commit")) for v in record.versions}
    if len(commits) > 1:
        out.append(("Commits", f"{len(commits)} different ones over its starts"))
    return out


def training_seconds(record: Record) -> float:
    """Sum over the log lines of their samples by their samples/s."""
    total, before = 0.0, 0
    for line in record.metrics:
        rate, seen = line.get("train/samples_per_second"), line.get("samples_seen", before)
        if rate and rate > 0:
            total += max(0, seen - before) / rate
        before = seen
    return total


def clock(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _short(version: str) -> str:
    """A commit by its first twelve digits, with the `+` of a changed tree."""
    return version[:12] + "+" * version.endswith("+") if len(version) > 39 else version


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
