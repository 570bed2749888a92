"""clip-retrieval 2.45.0's ClipClient against `clipx serve`: by text, image and embedding.

    bash benchmarks/retrieval_env.sh                              # once: the client
    clipx embed runs/demo data/demo/train --out embeddings/demo   # once: the collection
    python benchmarks/parity_clip_client.py embeddings/demo [--check]

`--check` exits 1 unless each result has the shape that its documentation gives (id, similarity,
url, caption), the rows are those of `clipx search`, and each url is a picture.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from server_process import running_server  # type: ignore[import] beside this file

from clipx.search.query import Index

HERE = Path(__file__).parent


def faults(results: list[dict[str, object]], expected: list[int]) -> list[str]:
    """Differences from the documented shape, and from the ranks of clipx itself."""
    found = []
    for result in results:
        types = {"id": int, "similarity": float, "url": str, "caption": str}
        for name, kind in types.items():
            if not isinstance(result.get(name), kind):
                found.append(f"{name} is {result.get(name)!r}")
        with urllib.request.urlopen(str(result["url"])) as response:
            Image.open(io.BytesIO(response.read())).verify()
    rows = [result["id"] for result in results]
    if rows != expected:
        found.append(f"rows {rows} instead of {expected}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of `clipx embed`")
    parser.add_argument("--peer-python", default=".venv-retrieval/bin/python")
    parser.add_argument("--check", action="store_true", help="exit 1 when an answer is not right")
    arguments = parser.parse_args()
    if not Path(arguments.peer_python).exists():
        sys.exit("the client is missing: bash benchmarks/retrieval_env.sh")
    index = Index.open(arguments.folder)
    with running_server(arguments.folder) as (_, address):
        with urllib.request.urlopen(f"{address}/api/picture/{arguments.folder.name}/7") as response:
            picture = response.read()
        vector = torch.from_numpy(index.rows[7].astype("float32"))
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            file.write(picture)
            file.flush()
            client = [arguments.peer_python, str(HERE / "peer_client.py"), address]
            client += [arguments.folder.name, file.name, json.dumps(vector.tolist())]
            done = subprocess.run(client, check=True, capture_output=True, text=True)
            of_image = index.search(image=file.name, k=20)
        answer = json.loads(done.stdout.splitlines()[-1])
        expected = {
            "text": index.search(text="a red flag", k=20),
            "image": of_image,
            "embedding": index.search(vector=vector, k=20),
        }
        figures: dict[str, Any] = {}
        for kind, results in answer["results"].items():
            rows = [hit.row for hit in expected[kind]]
            figures[kind] = {"results": len(results), "faults": faults(results, rows)}
    table = Table("query", "results", "faults", title=f"ClipClient {answer['version']}")
    for kind, found in figures.items():
        table.add_row(kind, str(found["results"]), "; ".join(found["faults"]) or "none")
    Console(width=140).print(table)
    print(json.dumps(figures))
    if arguments.check and any(found["faults"] for found in figures.values()):
        sys.exit("ClipClient's answers are not as documented")


if __name__ == "__main__":
    main()
