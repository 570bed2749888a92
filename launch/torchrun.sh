#!/usr/bin/env bash
# Train on all GPUs of this machine, or on two CPU processes where there are none.
#   bash launch/torchrun.sh configs/run/demo_tiny.yaml run_dir=runs/two [key=value ...]
# Several machines without SLURM: the same command on each, with RDZV=host:port of one of them. NNODES=2:4 starts with two, takes in
# two more when they come, and goes on with fewer when some are lost, each time from the newest checkpoint.
#   NPROC         processes of this machine (default: its GPUs)
#   NNODES        machines, or MIN:MAX (default 1)
#   RDZV          host:port where they meet; RDZV_ID a name for the run, if one host serves several
#   MAX_RESTARTS  how often this machine starts its processes again after one of them has died (default 3)
set -euo pipefail
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${NPROC:-$((gpus > 0 ? gpus : 2))}
if [ "$gpus" = 0 ]; then # processes of one machine share its cores
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
fi
# Without it torch 2.14's agents keep one key-value store across restarts, and a rank that was started again may be given the address
# of a peer of the group before: "connectFullMesh failed ... Connection refused" (pytorch issues 135712, 167288).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # no word about each host name and each connection that ends
meet=(--standalone)
if [ "${NNODES:-1}" != 1 ]; then
  : "${RDZV:?host:port of the machine where all meet, e.g. RDZV=node1:29500}"
  # the last to come is waited for 10 s once MIN are there, the first of them 10 minutes
  meet=(--rdzv-backend=c10d --rdzv-endpoint="$RDZV" --rdzv-id="${RDZV_ID:-clipx}" --rdzv-conf=last_call_timeout=10,join_timeout=600)
fi
exec python -m torch.distributed.run "${meet[@]}" --nnodes="${NNODES:-1}" --nproc-per-node="$processes" \
  --max-restarts="${MAX_RESTARTS:-3}" -m clipx train "$@"
