"""Embeds shards as `clipx embed` does, for benchmarks/embed.py: answers as peer_embed.py does, and
a line with `"forward"` by the seconds of the forward pass of a training step."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clipx import embed
from clipx.config import build
from clipx.data.config import DataConfig
from clipx.data.tokenizers import pad
from clipx.embed import Encoder
from clipx.progress import silent
from clipx.search.embed_corpus import EmbedCorpus
from clipx.training.precision import build_precision


def embed_shards(encoder: Encoder, shards: list[str], out: str, workers: int) -> None:
    # The caption that the peer reads.
    settings = {"shards": shards, "workers": workers, "caption_field": "txt"}
    config = build(DataConfig, settings, where="data")
    corpus = config.corpus(config.open_sources(), seed=0, needs_captions=False)
    run = EmbedCorpus(Path(out), corpus, config, encoder, model="benchmark", part_size=10_000)
    run.open_folder()
    run.build(silent)
    run.finish()


def forward_seconds(encoder: Encoder, captions: list[str]) -> float:
    """Of both towers in training mode, for a batch that is in memory; a median of five."""
    size = encoder.image_size
    pixels = torch.randint(0, 256, (len(captions), 3, size, size), dtype=torch.uint8)
    ids = [encoder.tokenizer.encode(text, encoder.context_length) for text in captions]
    tokens = pad(ids, encoder.tokenizer.pad_id, encoder.pad_to)
    model = encoder.model.train()
    is_mixed = encoder.dtype != torch.float32
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        with torch.autocast("cpu", encoder.dtype if is_mixed else None, is_mixed):
            model(encoder.preprocessing(pixels), tokens)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first prepares kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder in open_clip's layout")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    dtype = build_precision(arguments.precision, torch.device("cpu")).dtype
    encoder = embed.load(f"local-dir:{arguments.model}", dtype=dtype)
    print(json.dumps({"ready": True, "precision": str(dtype)}), flush=True)
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        start = time.perf_counter()
        if "forward" in request:
            answer = {"seconds": forward_seconds(encoder, request["forward"])}
        else:
            embed_shards(encoder, request["shards"], request["out"], request["workers"])
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
