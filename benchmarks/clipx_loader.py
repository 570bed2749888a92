"""Images per second of clipx's loader, for benchmarks/loader.py: answers as peer_loader.py does."""

from __future__ import annotations

import argparse
import json
import sys
import time

from clipx.config import build
from clipx.data.config import DataConfig
from clipx.data.loader import Batches, load
from clipx.data.tokenizers import ClipBPE


def make_batches(
    shards: str, *, size: int, batch_size: int, workers: int, decode: str = "exact"
) -> Batches:
    """clipx's default augmentation, which is the peer's, and captions of at most 77 tokens."""
    config = build(
        DataConfig, {"shards": shards, "workers": workers, "decode": decode}, where="data"
    )
    return Batches(
        config,
        config.open(seed=0),
        ClipBPE(),
        image_size=size,
        context_length=77,
        pad_to=None,
        global_batch_size=batch_size,
        rank=0,
        world_size=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--size", type=int, required=True, help="pixels a side")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--decode", choices=["exact", "scaled"], default="exact")
    arguments = parser.parse_args()
    source = make_batches(
        arguments.shards,
        size=arguments.size,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        decode=arguments.decode,
    )
    batches = load(source, 0, 10**6)
    first = next(batches)
    image, text = first.views["image"], first.views["text"]
    assert image.shape == (arguments.batch_size, 3, arguments.size, arguments.size)
    about = {"image": str(image.dtype), "text": list(text.shape)}
    print(json.dumps({"ready": True, **about}), flush=True)
    for line in sys.stdin:
        burst = json.loads(line)
        for _ in range(burst["skip"]):
            next(batches)
        start = time.perf_counter()
        for _ in range(burst["batches"]):
            next(batches)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
