#!/usr/bin/env bash
# Trains with open_clip 3.3.0's own trainer for about MINUTES on the CPU; logs go to runs/peer/.
#
#     bash benchmarks/peer_env.sh
#     bash benchmarks/peer_train.sh MODEL.json MINUTES [more flags of open_clip_train.main ...]
#     bash benchmarks/peer_train.sh model.json 10 --force-context-length 16
#
# The trainer counts samples, not minutes, and its cosine needs the total beforehand. So 20 steps
# are run first to learn the rate, and the real run gets as many steps as fit in MINUTES.
# DATA (default data/demo/train) is a folder of webdataset shards; PYTHON and NAME can be set too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model_json=$1 minutes=$2
shift 2
extra=("$@")
python=${PYTHON:-$root/.venv-peer/bin/python}
data=${DATA:-$root/data/demo/train}
name=${NAME:-$(date +%Y%m%d-%H%M%S)}
out=$root/runs/peer
batch=512

# An existing out.log makes the trainer give up with exit status 0.
[[ ! -e $out/$name ]] || { echo "$out/$name exists; set another NAME" >&2; exit 1; }
shards=("$data"/*.tar)
[[ -e ${shards[0]} ]] || { echo "no .tar shards in $data; set DATA" >&2; exit 1; }
urls=$(printf '::%s' "${shards[@]}")
urls=${urls:2}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# --model takes a built-in name or a folder with this file in it.
"$python" - "$model_json" "$scratch/open_clip_config.json" <<'PY'
import json, pathlib, sys

config = {"model_cfg": json.loads(pathlib.Path(sys.argv[1]).read_text()), "preprocess_cfg": {}}
pathlib.Path(sys.argv[2]).write_text(json.dumps(config))
PY

# train LOGS NAME STEPS LOG_EVERY. One epoch of all samples: the shards repeat as needed.
# The betas and eps are those that the trainer picks by itself when the model's name has "vit".
train() {
    "$python" -m open_clip_train.main --model "local-dir:$scratch" --device cpu \
        --dataset-type webdataset --train-data "$urls" \
        --train-num-samples $(($3 * batch)) --epochs 1 --workers 1 --batch-size $batch \
        --precision amp_bf16 --lr 1e-3 --beta1 0.9 --beta2 0.98 --eps 1e-6 --wd 0.2 \
        --lr-scheduler cosine --warmup $(($3 / 10)) --grad-clip-norm 1.0 \
        --logs "$1" --name "$2" --log-every-n-steps "$4" "${extra[@]}"
}

# Median seconds of 20 steps, loading included, from lines like "... Batch (t): 1.234, 415/s ...".
train "$scratch" rate 20 1 >"$scratch/log" 2>&1 || { tail -20 "$scratch/log" >&2; exit 1; }
seconds=$(sed -n 's/.*Batch (t): \([0-9.]*\),.*/\1/p' "$scratch/log" | sort -n | sed -n 10p)
steps=$("$python" -c "print(max(10, int($minutes * 60 / $seconds)))")
echo "$seconds s a step of $batch; $minutes minutes are $steps steps"

SECONDS=0
train "$out" "$name" "$steps" 10
echo "trained $((steps * batch)) samples in $SECONDS s: $out/$name/checkpoints/epoch_1.pt"
