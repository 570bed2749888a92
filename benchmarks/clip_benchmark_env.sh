#!/usr/bin/env bash
# A virtual environment of its own for CLIP_benchmark 1.6.2, which benchmarks/parity_clip_benchmark.py compares with.
#
#     bash benchmarks/clip_benchmark_env.sh [DIR]        # default: .venv-clip-benchmark in the repository root
#
# Apart from clipx's environment, because its classification fails on NumPy 2.4, which no longer makes a float of an
# array of one element, and because it brings pycocoevalcap and others along that clipx does not want. It has its own
# torch: then nothing that is installed for clipx can change what it computes.
# Run again at will: what is installed already is left as it is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/.venv-clip-benchmark}
python=$dir/bin/python

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$dir"

has_torch() { "$python" -c 'import torch, torchvision' 2>/dev/null; }

# The same torch as clipx is measured with; any other release if that one is gone.
has_torch || "$python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 ||
    "$python" -m pip install --quiet torch torchvision

"$python" -m pip install --quiet 'clip-benchmark==1.6.2' 'numpy<2.4' 'open_clip_torch==3.3.0' requests  # which it imports, undeclared

"$python" - <<'PY'
import importlib.metadata as metadata

import clip_benchmark.cli  # the proof: all that it imports is here

for name in ("torch", "torchvision", "open_clip_torch", "webdataset", "numpy", "clip_benchmark"):
    print(f"{name:16} {metadata.version(name)}")
PY
