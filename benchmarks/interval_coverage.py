"""How often the intervals of 95 % that clipx prints hold the truth, by simulation.

python benchmarks/interval_coverage.py            print the table of docs/evaluation.md
python benchmarks/interval_coverage.py --write    put it there

Each scenario draws test sets from a population whose truth is known and hands them to the functions
of the evaluators. tests/metrics/test_coverage.py holds the rates to 93 to 99 %.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from interval_populations import Scenario, scenarios

DOCS = Path(__file__).parent.parent / "docs/evaluation.md"
BEGIN, END = "<!-- begin: python benchmarks/interval_coverage.py --write -->", "<!-- end -->"
DRAWS = 1000
"""Test sets of each scenario; the standard error of a coverage of 95 % is 0.7 %."""


@dataclass
class Coverage:
    """Of one metric of one scenario, over draws of the test set.

    printed: draws in which there was an interval; covered: of those, the truth was in it
    outside: of those, the metric's own value was not in it
    """

    metric: str
    scenario: Scenario
    draws: int = 0
    printed: int = 0
    covered: int = 0
    outside: int = 0

    @property
    def rate(self) -> float:
        return self.covered / self.printed if self.printed else math.nan


def simulate(scenario: Scenario, draws: int = DRAWS, *, seed: int = 1) -> list[Coverage]:
    """The coverage of each metric of a scenario whose truth is known."""
    torch.manual_seed(seed)
    found = [Coverage(metric, scenario) for metric in scenario.truth]
    for _ in range(draws):
        result = scenario.draw()
        for coverage in found:
            coverage.draws += 1
            interval = result.intervals.get(coverage.metric)
            if interval is None:
                continue
            coverage.printed += 1
            coverage.covered += _within(scenario.truth[coverage.metric], interval)
            coverage.outside += not _within(result.metrics[coverage.metric], interval)
    return found


def _within(value: float, interval: tuple[float, float]) -> bool:
    rounding = 1e-9
    return interval[0] - rounding <= value <= interval[1] + rounding


def table(found: list[Coverage]) -> list[str]:
    lines = ["| metric | test sets | coverage | |", "|---|---|---|---|"]
    for one in found:
        note = one.scenario.above if one.rate > 0.99 and one.scenario.above else ""
        if one.printed < one.draws:
            note = f"printed in {one.printed / one.draws:.0%}"
        lines.append(f"| `{one.metric}` | {one.scenario.name} | {one.rate:.1%} | {note} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    found = [one for scenario in scenarios() for one in simulate(scenario, arguments.draws)]
    text = "\n".join(table(found))
    print(text)
    if arguments.write:
        page = DOCS.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
