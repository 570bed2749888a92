"""Images per second of open_clip 3.3.0's own training loader: open_clip_train.data.get_wds_dataset
with its default augmentation and its SimpleTokenizer.

Runs in the peer's environment (benchmarks/peer_env.sh) and never imports clipx. Prints one line
with `"ready": true`, then answers each line `{"skip": n, "batches": m}` from stdin by one line with
the seconds that m batches took after n that were not timed.
"""

import argparse
import json
import sys
import time
import warnings
from importlib.metadata import version
from types import SimpleNamespace

from open_clip import get_tokenizer, image_transform
from open_clip_train.data import get_wds_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="a brace pattern, or paths joined by ::")
    parser.add_argument("--size", type=int, required=True, help="pixels a side")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()
    settings = SimpleNamespace(
        train_data=arguments.shards,
        train_num_samples=10
        ** 9,  # one epoch that outlasts the benchmark: workers are never restarted
        dataset_resampled=False,
        train_data_upsampling_factors=None,
        seed=0,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        world_size=1,
    )
    warnings.filterwarnings("ignore")
    preprocess_train = image_transform(arguments.size, is_train=True)
    data = get_wds_dataset(settings, preprocess_train, True, tokenizer=get_tokenizer("ViT-B-32"))
    batches = iter(data.dataloader)
    image, text = next(batches)
    assert image.shape == (arguments.batch_size, 3, arguments.size, arguments.size)
    names = ("open_clip_torch", "webdataset", "torch", "torchvision", "pillow")
    versions = {name: version(name) for name in names}
    about = {"image": str(image.dtype), "text": list(text.shape), "versions": versions}
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
