"""Retrieval metrics over random embeddings: blocks of scores against the whole matrix.

python benchmarks/retrieval.py                  time and peak memory of both, at sizes that fit
python benchmarks/retrieval.py --check          fails unless recall is equal, and below 2 GiB

Each measurement runs in a process of its own, so that its peak memory is its own. The dense way is
what CLIP_benchmark does: the whole matrix, a matrix of matches, and top-k both ways.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from clipx.evaluators.retrieval import pair_ranks, retrieval_result
from clipx.types import Setting

WIDTH, CAPTIONS_PER_IMAGE = 512, 5
SMALL, LARGE = 4_000, 40_000
LIMIT_GIB = 2.0
GIB = 2**30


def embeddings(num_images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions that lie nearer to their own image than chance, as a trained model's do."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(num_images, WIDTH, generator=generator), dim=-1)
    owner = torch.arange(num_images).repeat_interleave(CAPTIONS_PER_IMAGE)
    text = torch.randn(len(owner), WIDTH, generator=generator)
    text.mul_(0.3).add_(image[owner])  # in place: the large size is to stay small
    return image, F.normalize(text.add_(0), dim=-1, out=text), owner


def blocks(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    ranks = pair_ranks(image, text, owner, Setting())
    return retrieval_result(ranks, [str(n) for n in range(len(image))]).metrics


def dense(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    scores = text @ image.T
    match = torch.zeros_like(scores, dtype=torch.bool)
    match[torch.arange(len(owner)), owner] = True
    out = {}
    for direction, s, m in (("text_to_image", scores, match), ("image_to_text", scores.T, match.T)):
        for k in (1, 5, 10):
            best = s.topk(k, dim=1).indices
            out[f"{direction}_R@{k}"] = m.gather(1, best).any(1).double().mean().item()
    return out


def measure(way: str, num_images: int) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--images", str(num_images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run(way: str, num_images: int) -> dict[str, float]:
    data = embeddings(num_images)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    metrics = blocks(*data) if way == "blocks" else dense(*data)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return metrics | {"seconds": seconds, "peak_gib": peak / GIB, "before_gib": before / GIB}


def report(way: str, num_images: int) -> dict[str, float]:
    found = measure(way, num_images)
    print(
        f"{way:6}  {num_images:,} images x {num_images * CAPTIONS_PER_IMAGE:,} captions: "
        f"{found['seconds']:.1f} s, peak {found['peak_gib']:.2f} GiB "
        f"({found['before_gib']:.2f} before), text to image R@1 {found['text_to_image_R@1']:.2%}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--images", type=int, default=LARGE, help="of the large size")
    parser.add_argument("--way", choices=("blocks", "dense"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run(arguments.way, arguments.images)))
        return
    small = {way: report(way, SMALL) for way in ("dense", "blocks")}
    large = report("blocks", arguments.images)
    if arguments.check:
        for name in (f"{d}_R@{k}" for d in ("text_to_image", "image_to_text") for k in (1, 5, 10)):
            # Sums in another order may swap two scores that are equal to 1e-7.
            gap = abs(small["dense"][name] - small["blocks"][name])
            assert gap * SMALL <= 1, f"{name}: {small['dense'][name]} and {small['blocks'][name]}"
        assert large["peak_gib"] < LIMIT_GIB, f"{large['peak_gib']:.2f} GiB"
        print(f"the same recall both ways; the large size stays below {LIMIT_GIB} GiB")


if __name__ == "__main__":
    main()
