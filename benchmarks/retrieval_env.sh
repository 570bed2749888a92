#!/usr/bin/env bash
# A virtual environment of its own for clip-retrieval 2.45.0, whose `inference` benchmarks/embed.py compares with.
#
#     bash benchmarks/retrieval_env.sh [DIR]        # default: .venv-retrieval in the repository root
#
# Apart from clipx's environment, because clip-retrieval needs numpy < 2, open_clip 2 and an old
# webdataset. It has its own torch: then nothing that is installed for clipx can change what the
# peer runs. Run again at will: what is installed already is left as it is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/.venv-retrieval}
python=$dir/bin/python

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$dir"

has_torch() { "$python" -c 'import torch, torchvision' 2>/dev/null; }

# The same torch as clipx is measured with; any other release if that one is gone.
has_torch || "$python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 ||
    "$python" -m pip install --quiet torch torchvision

"$python" -m pip install --quiet 'clip-retrieval==2.45.0' 'setuptools<70' # of which OpenAI's clip takes pkg_resources

"$python" - <<'PY'
import importlib.metadata as metadata

import clip_retrieval.clip_inference.worker  # the proof: all that `inference` imports is here

for name in ("torch", "clip_retrieval", "all-clip", "open_clip_torch", "webdataset", "numpy"):
    print(f"{name:16} {metadata.version(name)}")
PY
