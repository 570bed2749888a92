"""A small corpus that is embedded and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedded import embed_corpus
from fastapi.testclient import TestClient
from samples import pair, write_shard

from clipx.serve.app import build_app
from clipx.serve.collection import open_collections

NUM_SAMPLES = 90
ADDRESS = "http://127.0.0.1:8000"


def embed(folder: Path) -> Path:
    """Embeddings of NUM_SAMPLES samples in two parts, below the folder."""
    samples: dict[str, Any] = {}
    for n in range(NUM_SAMPLES):
        about = {"captions": [f"picture {n}"], "price": n, "shop": "here" if n % 2 else "There"}
        if n == 3:
            about["score"] = float("nan")  # which JSON does not have
        samples[f"k{n:02d}"] = {**pair(n), "json": about, "txt": f"picture {n}"}
    write_shard(folder / "corpus/0.tar", samples)
    settings = ["--part-size", "25", "--precision", "fp32", "--dtype", "float32"]
    return embed_corpus(folder, *settings, name="drawings")


def client(folder: Path, **settings: Any) -> TestClient:
    """To be entered, which starts the application."""
    app = build_app(open_collections([folder]), **settings)
    return TestClient(app, base_url=ADDRESS)
