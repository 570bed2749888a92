"""Tokenizer of clipx beside open_clip's SimpleTokenizer: microseconds per caption, and whether all
tokens are the same.

    python benchmarks/tokenizer.py [--check] [--shards data/demo/train] [--rounds 5]

open_clip is called as its trainer does, once per caption, which gives a padded row; clipx encodes
each caption and pads them in batches of 512. The contestants take turns on the same texts, on one
thread, and no caption comes twice: both remember words, neither remembers captions. Figures are
medians of rounds after half or more of the texts, which fill the memories. Tokens are compared on
100,000 strings: captions of the shards, generated ones, and texts that meet every branch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from rich.console import Console
from rich.table import Table

from clipx.data.tokenizers import ClipBPE, pad

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from texts import SENTENCES, fuzzed  # pyrefly: ignore[missing-import]

CONTEXT, BATCH = 77, 512
BAR = 4.0
STRINGS = 100_000
TIMED = 2 * BATCH  # texts of each kind in a round


def shard_captions(folder: Path) -> list[str]:
    """The `.txt` members of all tar files of a folder, each caption once."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt") and (file := tar.extractfile(member)):
                    found[file.read().decode()] = None
    return list(found)


def web_captions(vocabulary: SimpleTokenizer, draw: random.Random, count: int) -> list[str]:
    """Like alternative texts of the web: 5 to 30 words by Zipf's law, capitals, numbers and marks;
    every tenth has accents or curly quotes, every fifth a name that was never seen."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    # In the order of the vocabulary, which is about that of frequency.
    words = [w for t in vocabulary.encoder if (w := t.removesuffix("</w>")) != t and w.isalpha()]
    words = [word for word in words if word.isascii()]
    cumulated = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(words))))
    out = []
    for _ in range(count):
        caption = draw.choices(words, cum_weights=cumulated, k=draw.randint(5, 30))
        if draw.random() < 0.2:
            caption[draw.randrange(len(caption))] = "".join(draw.choices(letters, k=8))
        for _ in range(len(caption) // 5):
            at = draw.randrange(len(caption))
            mark = draw.choice(
                ["{},", "{}.", "({})", "{}'s", "{}-2019", "{} - 1080p", "{} &", "{}"]
            )
            caption[at] = mark.format(caption[at])
        text = " ".join(caption)
        if draw.random() < 0.1:
            text = draw.choice([f"\u201c{text}\u201d", f"{text} \u2013 caf\xe9", f"{text}\u2019s"])
        out.append(draw.choice([str, str.capitalize, str.title])(text))
    return out


def mismatches(texts: list[str], ours: ClipBPE, theirs: SimpleTokenizer) -> list[str]:
    return [t for t in texts if ours.encode(t, 10**9)[1:-1] != theirs.encode(t)]


def contestants() -> dict[str, Callable[[list[str]], object]]:
    """Each with a memory of its own, and the vocabulary read."""
    ours, alone, theirs, their_alone = ClipBPE(), ClipBPE(), SimpleTokenizer(), SimpleTokenizer()
    for tokenizer in (ours, alone):
        tokenizer.encode("\u2019", CONTEXT)
    return {
        "open_clip": lambda texts: [theirs(t, CONTEXT) for t in texts],
        "clipx": lambda texts: pad([ours.encode(t, CONTEXT) for t in texts], 0, CONTEXT),
        "open_clip, encode alone": lambda texts: [their_alone.encode(t) for t in texts],
        "clipx, encode alone": lambda texts: [alone.encode(t, CONTEXT) for t in texts],
    }


def timed(texts: list[str], rounds: int) -> dict[str, float]:
    """Microseconds per text of each contestant, the median of rounds. A round is TIMED texts that
    were not met before; all others come first, untimed."""
    runs = contestants()
    for run in runs.values():
        run(texts[rounds * TIMED :])
    micros: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for i in range(k * TIMED, (k + 1) * TIMED, BATCH):
                run(texts[i : i + BATCH])
            micros[name].append((time.perf_counter() - start) / TIMED * 1e6)
    return {name: statistics.median(values) for name, values in micros.items()}


def report(kinds: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    names = list(contestants())
    title = f"microseconds per text, median of {rounds} rounds of {TIMED} new texts"
    columns = ("texts", "characters", "not ASCII", *names, "faster by", "encode alone by")
    table = Table(*columns, title=title)
    figures: dict[str, Any] = {}
    for kind, texts in kinds.items():
        micros = timed(texts, rounds)
        faster = micros["open_clip"] / micros["clipx"]
        alone = micros["open_clip, encode alone"] / micros["clipx, encode alone"]
        table.add_row(
            kind,
            f"{statistics.mean(map(len, texts)):.0f}",
            f"{statistics.mean(not t.isascii() for t in texts):.0%}",
            *(f"{micros[name]:.1f}" for name in names),
            *(f"{ratio:.1f}x" for ratio in (faster, alone)),
        )
        figures[f"{kind}: clipx microseconds"] = round(micros["clipx"], 2)
        figures[f"{kind}: clipx over open_clip"] = round(faster, 2)
        figures[f"{kind}: encode alone"] = round(alone, 2)
    Console(width=150).print(table)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, default=Path("data/demo/train"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, ours, theirs = random.Random(arguments.seed), ClipBPE(), SimpleTokenizer()

    stored = shard_captions(arguments.shards)
    draw.shuffle(stored)
    timed_texts = 2 * TIMED * arguments.rounds
    web = web_captions(theirs, draw, timed_texts)
    fuzz = [fuzzed(draw) for _ in range(STRINGS // 2)]
    texts = [*fuzz, *SENTENCES, *web, *stored][:STRINGS]
    texts += web_captions(theirs, draw, STRINGS - len(texts))
    wrong = mismatches(texts, ours, theirs)
    for text in wrong[:10]:
        print("mismatch:", ascii(text))
    sentences = [" ".join(draw.choices(SENTENCES, k=3)) for _ in range(timed_texts)]
    kinds = {
        "stored captions": stored,
        "web captions": web,
        "Unicode sentences": sentences,
        "Unicode fuzz": [t for t in fuzz if not t.isascii()],
    }
    kinds = {kind: texts for kind, texts in kinds.items() if len(texts) >= timed_texts}
    figures = report(kinds, arguments.rounds)
    figures |= {
        "shards": str(arguments.shards),
        "strings": len(texts),
        "mismatches": len(wrong),
        "bar": BAR,
    }
    print(json.dumps(figures))
    slow = [k for k in kinds if "captions" in k and figures[f"{k}: clipx over open_clip"] < BAR]
    if arguments.check and (wrong or slow):
        sys.exit(f"{len(wrong)} mismatches; below {BAR}x: {slow}")


if __name__ == "__main__":
    main()
