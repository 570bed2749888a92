"""What was wrong with the data, and which steps were left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from clipx.report.page import Section, missing, sub, table, text
from clipx.report.record import Lines, Record
from clipx.viz.markup import Markup, shorten

LAST = 8
"""Bad samples and skipped steps that are listed."""


def section(record: Record) -> Section:
    children = [*quarantined(record), sub("Steps without a finite loss"), *skipped(record)]
    return Section("quality", "Data quality", children)


def quarantined(record: Record) -> list[Markup]:
    seen = record.metrics[-1].get("samples_seen") if record.metrics else None
    bad = record.quarantine
    of = f" of {seen:,} seen" if seen else ""
    if not bad:
        return [missing(f"No bad sample{of}: quarantine.jsonl is empty.")]
    share = f" ({len(bad) / seen:.3%})" if seen else ""
    told = f"{len(bad):,} bad samples{of}{share}, each replaced by a neighbor."
    counts = Counter((str(b.get("stage", "?")), str(b.get("error", "?"))) for b in bad)
    rows = [[stage, error, f"{n:,}"] for (stage, error), n in counts.most_common()]
    return [
        text(told),
        table(["stage", "error", "samples"], rows, title="By reason", numbers=[2]),
        last_bad(bad),
    ]


def last_bad(bad: Lines) -> Markup:
    names = ("step", "shard", "key", "stage", "message")
    rows = [[shorten(str(b.get(name, "")), 160) for name in names] for b in reversed(bad[-LAST:])]
    return table(list(names), rows, title=f"The last {len(rows)}, newest first")


def skipped(record: Record) -> list[Markup]:
    last = record.metrics[-1] if record.metrics else {}
    counts = {
        "left out because loss or gradient was not finite": last.get("skipped_steps", 0),
        "left out because float16 overflowed": last.get("overflowed_steps", 0),
    }
    lines = record.nonfinite
    if not any(counts.values()) and not lines:
        return [missing("None: nonfinite.jsonl is empty, and the log counts no skipped step.")]
    out = [text("; ".join(f"{n:,} steps {why}" for why, n in counts.items() if n))]
    if lines:
        rows = [
            [
                str(line.get("step", "")),
                str(line.get("rank", "")),
                "features" if line.get("features") else "loss or gradient",
                f"{len(keys_of(line)):,}",
                shorten(", ".join(map(str, keys_of(line))), 160),
            ]
            for line in reversed(lines[-LAST:])
        ]
        columns = ["step", "rank", "not finite", "samples", "keys"]
        title = f"The last {len(rows)} of {len(lines):,} lines, newest first"
        out.append(table(columns, rows, title=title, numbers=[0, 1, 3]))
    return out


def keys_of(line: dict[str, Any]) -> list[Any]:
    """The samples of a line of nonfinite.jsonl."""
    keys = line.get("keys")
    return keys if isinstance(keys, list) else []
