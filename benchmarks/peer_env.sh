#!/usr/bin/env bash
# A virtual environment of its own for the peer, open_clip 3.3.0, that the benchmarks compare with.
#
#     bash benchmarks/peer_env.sh [DIR]        # default: .venv-peer in the repository root
#
# Apart from clipx's environment, because open_clip_train needs webdataset <= 0.2.86 (1.x fails on
# the first shard with KeyError: 'fname') and pandas. It has its own torch (6 GB), rather than a
# .pth file into ours: then nothing that is installed for clipx can change what the peer runs.
# Run again at will: what is installed already is left as it is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/.venv-peer}
python=$dir/bin/python

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$dir"

has_torch() { "$python" -c 'import torch, torchvision' 2>/dev/null; }

# The same torch as clipx is measured with; any other release if that one is gone.
has_torch || "$python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 ||
    "$python" -m pip install --quiet torch torchvision

# tensorboard and transformers are optional to open_clip_train; with them every flag works.
"$python" -m pip install --quiet \
    'open_clip_torch==3.3.0' 'webdataset<=0.2.86' pandas \
    braceexpand fsspec transformers tensorboard

"$python" - <<'PY'
import importlib.metadata as metadata

import open_clip_train.main  # the proof: all that the trainer imports is here

for name in ("torch", "torchvision", "open_clip_torch", "webdataset", "timm", "transformers"):
    print(f"{name:16} {metadata.version(name)}")
print(f"{'trainer':16} {open_clip_train.main.__file__}")
PY
