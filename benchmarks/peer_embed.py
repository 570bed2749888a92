"""Embeds shards by clip-retrieval's own `inference`, for benchmarks/embed.py.

Runs in the peer's environment (benchmarks/retrieval_env.sh) and never imports clipx. Prints one
line with `"ready": true`, then answers each line from stdin, the arguments that vary of
`clip_retrieval.clip_inference.worker`, by one line with the seconds that it took.
"""

import argparse
import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import open_clip
from clip_retrieval.clip_inference.worker import worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder in open_clip's layout")
    parser.add_argument("--image-key", required=True, help="extension of the pictures in the tars")
    parser.add_argument("--has-json", action="store_true", help="samples have a .json member")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    # Its architecture under a name that open_clip looks up, and a file for its weights.
    settings = json.loads((arguments.model / "open_clip_config.json").read_text())
    named = arguments.model / "benchmark-model.json"
    named.write_text(json.dumps(settings["model_cfg"]))
    open_clip.add_model_config(named)
    weights = arguments.model / "open_clip_model.safetensors"
    names = ("clip_retrieval", "all-clip", "open_clip_torch", "torch", "numpy")
    print(json.dumps({"ready": True, "versions": {name: version(name) for name in names}}))
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        worker(
            tasks=[0],
            input_dataset=request["shards"],
            output_folder=request["out"],
            output_partition_count=1,
            input_format="webdataset",
            num_prepro_workers=request["workers"],
            enable_metadata=arguments.has_json,
            wds_image_key=arguments.image_key,
            clip_model=f"open_clip:{named.stem}/{weights}",
            use_jit=request["jit"],
        )
        print("\n" + json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
