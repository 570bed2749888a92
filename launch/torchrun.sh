#!/usr/bin/env bash
# Train on all GPUs of this machine, or on two CPU processes where there are none.
#   bash launch/torchrun.sh configs/run/demo_tiny.yaml run_dir=runs/two [key=value ...]
# NPROC sets the number of processes. Several machines: launch/slurm.sbatch.
set -euo pipefail
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${NPROC:-$((gpus > 0 ? gpus : 2))}
if [ "$gpus" = 0 ]; then # processes of one machine share its cores
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
fi
exec python -m torch.distributed.run --standalone --nproc-per-node="$processes" -m clipx train "$@"
