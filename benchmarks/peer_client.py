"""Queries a server by clip-retrieval's own ClipClient, for benchmarks/parity_clip_client.py.

Runs in the peer's environment (benchmarks/retrieval_env.sh) and never imports clipx. Prints the
results of a text, an image and an embedding as one line of JSON.
"""

import argparse
import json
from importlib.metadata import version

from clip_retrieval.clip_client import ClipClient, Modality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("index")
    parser.add_argument("picture")
    parser.add_argument("embedding", help="a JSON list")
    arguments = parser.parse_args()
    client = ClipClient(
        url=f"{arguments.url}/knn-service",
        indice_name=arguments.index,
        modality=Modality.IMAGE,
        num_images=20,
        deduplicate=False,
    )
    results = {
        "text": client.query(text="a red flag"),
        "image": client.query(image=arguments.picture),
        "embedding": client.query(embedding_input=json.loads(arguments.embedding)),
    }
    print(json.dumps({"version": version("clip_retrieval"), "results": results}))


if __name__ == "__main__":
    main()
