"""Images per second of clipx's loader beside open_clip 3.3.0's own, on photographs and on the demo
corpus, and how far clipx's pixels are from Pillow's.

    bash benchmarks/peer_env.sh                      # once: the peer in an environment of its own
    pip install scikit-image scikit-learn            # once: the photographs
    clipx data demo --preset quick --out data/demo   # once: the other corpus
    python benchmarks/loader.py [--check] [--workers 2] [--rounds 5]

Same shards, batch size, number of workers and augmentation: RandomResizedCrop with scale (0.9, 1).
The contestants take turns in bursts, each in a process that lives on. A burst's first batches, more
than were loaded ahead in the pause, are not timed, and a pause lets the other's workers come to
rest. Figures are medians. `scaled` is `data.decode: scaled`. The peer's batches are float32 and
normalized in the workers; clipx's are uint8 and normalized on the device, which the breakdown times
apart. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import photos  # type: ignore[import] beside this file
import torch
from clipx_loader import make_batches  # type: ignore[import]
from line_process import LineProcess  # type: ignore[import]
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipx.data import decode
from clipx.data.augment import NUM_DRAWS, Augmentation, augment, crop_box
from clipx.data.corpus import Sample
from clipx.data.order import uniforms
from clipx.data.preprocessing import normalize
from clipx.data.tokenizers import pad

HERE = Path(__file__).parent
PAUSE_SECONDS = 1.5  # a worker has finished what it had begun
BARS = {"photos": {"ratio": 3.0, "scaled ratio": 4.5}, "demo": {"ratio": 2.0}}


@dataclass(frozen=True)
class Corpus:
    folder: Path
    size: int
    batch_size: int
    skip: int
    batches: int


@dataclass(eq=False)
class Contestant:
    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.process = LineProcess(self.name, self.command)
        self.process.answer()  # it is ready

    def burst(self, skip: int, batches: int) -> None:
        self.seconds.append(self.process.ask(skip=skip, batches=batches)["seconds"])
        time.sleep(PAUSE_SECONDS)


def race(corpus: Corpus, workers: int, rounds: int, peer_python: str) -> dict[str, float]:
    """Images per second of the peer and of clipx, which also decodes scaled; and their ratios."""
    shards = sorted(corpus.folder.glob("*.tar"))
    told = ["--size", str(corpus.size), "--batch-size", str(corpus.batch_size)]
    told += ["--workers", str(workers)]
    ours = [sys.executable, str(HERE / "clipx_loader.py"), "--shards", str(corpus.folder), *told]
    peer = [peer_python, str(HERE / "peer_loader.py"), "--shards", "::".join(map(str, shards))]
    contestants = [
        Contestant("clipx", ours),
        Contestant("clipx scaled", [*ours, "--decode", "scaled"]),
        Contestant("peer", [*peer, *told]),
    ]
    for one in contestants:
        one.start()
        one.burst(corpus.skip, 1)  # warm-up
        one.seconds.clear()
    for _ in range(rounds):
        for one in contestants:
            one.burst(corpus.skip, corpus.batches)
    for one in contestants:
        one.process.stop()
    images = corpus.batches * corpus.batch_size
    rate = {one.name: images / statistics.median(one.seconds) for one in contestants}
    return {
        **rate,
        "ratio": rate["clipx"] / rate["peer"],
        "scaled ratio": rate["clipx scaled"] / rate["peer"],
    }


def breakdown(corpus: Corpus, number: int = 200) -> dict[str, float]:
    """Median microseconds per sample of each part of clipx's worker, in this process."""
    source = make_batches(str(corpus.folder), size=corpus.size, batch_size=number, workers=0)
    located = source.corpus.order.locate(np.arange(number))
    places = list(zip(located.shard.tolist(), located.sample.tolist(), strict=True))
    draws = uniforms(0, np.arange(number)[:, None], NUM_DRAWS)
    batch = torch.empty(number, 3, corpus.size, corpus.size, dtype=torch.uint8)
    out: dict[str, float] = {}

    def timed(name: str, do: Callable[[int], Any]) -> list[Any]:
        seconds, results = [], []
        for i in range(number):
            start = time.perf_counter()
            results.append(do(i))
            seconds.append(time.perf_counter() - start)
        out[name] = statistics.median(seconds) * 1e6
        return results

    samples: list[Sample] = []
    for name in ("read, cold", "read"):
        samples = timed(name, lambda i: source.corpus.read(*places[i]))
    del out["read, cold"]
    decoded = timed("decode", lambda i: decode.decode(samples[i].images[0]))
    timed(
        "crop and resize",
        lambda i: augment(decoded[i], corpus.size, Augmentation(), draws[i], out=batch[i]),
    )
    for name in ("cold", "tokenize"):
        ids = timed(name, lambda i: source.tokenizer.encode(samples[i].captions[0].texts[0], 77))
    del out["cold"]
    start = time.perf_counter()
    pad(ids, 0)
    out["pad text"] = (time.perf_counter() - start) / number * 1e6
    timed("normalize (not in the worker)", lambda i: normalize(batch[i : i + 1]))
    return out


def pixel_differences(corpus: Corpus, number: int) -> list[int]:
    """How many pixel values are 0, 1, 2 ... levels from those of the installed Pillow: decoded,
    converted, cropped and resized by it."""
    source = make_batches(str(corpus.folder), size=corpus.size, batch_size=number, workers=0)
    located = source.corpus.order.locate(np.arange(number))
    draws = uniforms(0, np.arange(number)[:, None], NUM_DRAWS)
    counts = np.zeros(256, dtype=np.int64)
    for i, (shard, sample) in enumerate(zip(located.shard, located.sample, strict=True)):
        data = source.corpus.read(int(shard), int(sample)).images[0]
        ours = augment(decode.decode(data), corpus.size, Augmentation(), draws[i])
        image = decode.to_rgb(Image.open(io.BytesIO(data)))
        left, top, width, height = crop_box(image.height, image.width, Augmentation(), draws[i])
        crop = image.crop((left, top, left + width, top + height))
        theirs = np.asarray(crop.resize((corpus.size, corpus.size), Image.Resampling.BICUBIC))
        apart = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs)
        counts += np.bincount(apart.ravel(), minlength=256)
    return counts[: int(counts.nonzero()[0].max()) + 1].tolist()


def scaled_differences(corpus: Corpus, number: int) -> dict[str, float]:
    """Levels by which a pixel of `decode: scaled` differs from the exact one, and the share of
    images that are decoded smaller."""
    exact, scaled = (
        make_batches(str(corpus.folder), size=corpus.size, batch_size=number, workers=0, decode=how)
        for how in ("exact", "scaled")
    )
    difference = exact[0].views["image"].float() - scaled[0].views["image"].float()
    of_image = difference.abs().mean((1, 2, 3))
    return {
        "mean": float(of_image.mean()),
        "worst image": float(of_image.max()),
        "share of images": float((of_image > 0).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=300, help="that are compared with Pillow")
    parser.add_argument("--peer-python", default=".venv-peer/bin/python")
    parser.add_argument("--only", choices=list(BARS), help="one corpus of the two")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    arguments = parser.parse_args()
    if not Path(arguments.peer_python).exists():
        sys.exit("the peer's environment is missing; make it with: bash benchmarks/peer_env.sh")
    torch.set_num_threads(1)  # as in a worker
    corpora = {
        "photos": Corpus(photos.build(Path("build/loader-photos")), 224, 64, skip=12, batches=30),
        "demo": Corpus(Path("data/demo/train"), 64, 256, skip=12, batches=40),
    }
    if arguments.only:
        corpora = {arguments.only: corpora[arguments.only]}
    figures: dict[str, Any] = {}
    for name, corpus in corpora.items():
        figures[name] = {
            **race(corpus, arguments.workers, arguments.rounds, arguments.peer_python),
            "microseconds": breakdown(corpus),
            "levels from Pillow": pixel_differences(corpus, arguments.pictures),
            "scaled levels": scaled_differences(corpus, arguments.pictures),
        }
    report(figures, corpora, arguments.workers)
    print(json.dumps({"workers": arguments.workers, **rounded(figures)}))
    missed = []
    for name, found in figures.items():
        for ratio, bar in BARS[name].items():
            if found[ratio] < bar:
                missed.append(f"{name}: {ratio} {bar}x")
    missed += [
        f"{name} 1 level" for name in figures if len(figures[name]["levels from Pillow"]) > 2
    ]
    if arguments.check and missed:
        sys.exit(f"missed: {missed}")


def report(figures: dict[str, Any], corpora: dict[str, Corpus], workers: int) -> None:
    columns = ("corpus", "clipx images/s", "scaled", "open_clip images/s", "faster by", "scaled by")
    table = Table(*columns, "values 0, 1, 2 ... levels from Pillow", title=f"{workers} workers")
    parts = Table("corpus", *next(iter(figures.values()))["microseconds"])
    for name, found in figures.items():
        label = f"{name}, {corpora[name].size} pixels, batches of {corpora[name].batch_size}"
        levels = " ".join(map(str, found["levels from Pillow"]))
        rates = [f"{found[one]:.0f}" for one in ("clipx", "clipx scaled", "peer")]
        ratios = [f"{found[ratio]:.2f}x" for ratio in ("ratio", "scaled ratio")]
        table.add_row(label, *rates, *ratios, levels)
        parts.add_row(name, *(f"{value:.0f}" for value in found["microseconds"].values()))
    parts.title = "microseconds a sample in one worker of clipx"
    scaled = Table("corpus", *next(iter(figures.values()))["scaled levels"])
    scaled.title = "decode: scaled, levels of 256 from the exact pixels"
    for name, found in figures.items():
        scaled.add_row(name, *(f"{value:.2f}" for value in found["scaled levels"].values()))
    Console(width=140).print(table, parts, scaled)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
