"""Fine-tune the quickstart's model on a company's pictures, and print it before and after.

    bash launch/quickstart.sh                # the model, once
    python examples/finetune/run.py          # any setting can follow, such as optim.lr=3e-5

The pictures and their table are made by make_products.py if they are not there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from make_products import make

import clipx
from clipx.cores import usable_cores

CONFIG = Path(__file__).parent / "products.yaml"
SHOWN = {
    "held-out-classes-zeroshot-top1": "category of a held-out picture, zero-shot",
    "held-out-retrieval-text_to_image_R@1": "picture of a title, recall@1",
    "held-out-retrieval-text_to_image_R@5": "picture of a title, recall@5",
    "held-out-retrieval-image_to_text_R@1": "title of a picture, recall@1",
    "held-out-retrieval-image_to_text_R@5": "title of a picture, recall@5",
    "held-out-loss-loss": "loss of held-out pairs",
    "icons-before-zeroshot-top1": "icons of the demo, zero-shot (forgetting)",
}
Line = dict[str, Any]


def table(results: list[Line]) -> list[str]:
    """Lines of Markdown: each metric before the first step and after the last, with intervals.

    results: of results.jsonl
    """
    first = results[0]
    last = results[-1]
    assert first["step"] == 0, "evaluate_at_start"
    lines = ["| | before | after |", "|---|---|---|"]
    for metric, title in SHOWN.items():
        if metric in first and metric in last:
            lines.append(f"| {title} | {cell(first, metric)} | {cell(last, metric)} |")
    return lines


def cell(line: Line, metric: str) -> str:
    """`12.3 % (10.1 to 14.8)`; a loss has no interval."""
    if metric.endswith("loss"):
        return f"{line[metric]:.3f}"
    low, high = line[f"{metric}_interval"]
    return f"{100 * line[metric]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--products", type=Path, default=Path("data/products"))
    parser.add_argument("--npm", type=Path, default=Path("data/demo/npm"))
    arguments = parser.parse_args()

    started = time.monotonic()
    products = arguments.products / "products.csv"
    if not products.exists():
        make(arguments.products, arguments.npm, workers=usable_cores())
    made = time.monotonic()
    path = f"data.sources.products.path={products}"
    try:
        run = clipx.train(CONFIG, path, *arguments.overrides)
    except clipx.UserError as error:
        sys.exit(f"{error}")
    ended = time.monotonic()

    print("\n".join(table(run.results)))
    print(f"\n{(made - started) / 60:.1f} minutes to draw, {(ended - made) / 60:.1f} to train")


if __name__ == "__main__":
    main()
