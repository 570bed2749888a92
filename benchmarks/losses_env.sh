#!/usr/bin/env bash
# A virtual environment of its own for the peers whose losses benchmarks/parity_losses.py compares with.
#
#     bash benchmarks/losses_env.sh [DIR]        # default: .venv-losses in the repository root
#
# Apart from clipx's environment, because lightly, pytorch-metric-learning and sentence-transformers
# bring pytorch-lightning, hydra and others along that clipx does not want. It has its own torch:
# then nothing that is installed for clipx can change what the peers compute.
# Run again at will: what is installed already is left as it is.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/.venv-losses}
python=$dir/bin/python

[[ -x $python ]] || "${PYTHON:-python3}" -m venv "$dir"

has_torch() { "$python" -c 'import torch, torchvision' 2>/dev/null; }

# The same torch as clipx is measured with; any other release if that one is gone.
has_torch || "$python" -m pip install --quiet torch==2.14.1 torchvision==0.29.1 ||
    "$python" -m pip install --quiet torch torchvision

"$python" -m pip install --quiet \
    'lightly==1.6.0' 'pytorch-metric-learning==2.9.0' 'sentence-transformers==6.2.0' 'open_clip_torch==3.3.0'

"$python" - <<'PY'
import importlib.metadata as metadata

import lightly.loss  # the proof: all losses that are compared are here
import open_clip.loss
import pytorch_metric_learning.losses
import sentence_transformers.losses

names = ("torch", "lightly", "pytorch-metric-learning", "sentence-transformers", "open_clip_torch")
for name in names:
    print(f"{name:24} {metadata.version(name)}")
PY
