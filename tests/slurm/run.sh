#!/usr/bin/env bash
# Trains by launch/slurm.sbatch on a real SLURM cluster of two hosts that is made on this machine (lab/lab.sh), under torchrun, srun and
# accelerate, through a preemption, a time limit's notice, `scontrol requeue` and the loss of a host, and compares with a run that
# nothing disturbed. Prints a table; 4 to 6 minutes on 2 cores. Needs root on Debian or Ubuntu; says so and exits with 0 elsewhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "tests/slurm/run.sh skipped: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "it needs root, for hosts in namespaces"
command -v apt-get >/dev/null || skip "it needs Debian's or Ubuntu's SLURM packages, and there is no apt-get"
unshare --net --pid --mount --fork true 2>/dev/null || skip "this machine allows no new namespaces"
export LAB_DIR=${LAB_DIR:-$(mktemp -d /tmp/clipx-slurm.XXXXXX)}
trap 'bash tests/slurm/lab/lab.sh down; [ -n "${KEEP:-}" ] || rm -rf "$LAB_DIR"' EXIT
bash tests/slurm/lab/lab.sh install || skip "Debian's SLURM packages cannot be installed"
unshare --net sh -c 'ip link add sw0 type bridge && ip link add port0 type veth peer name port1' 2>/dev/null || skip "this kernel makes no bridges"
[ ! -d .venv ] || export PATH="$PWD/.venv/bin:$PATH"

trap 'exit 130' INT TERM
bash tests/slurm/lab/lab.sh up 2
export PYTHONPATH=$PWD:$PWD/tests OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
python tests/slurm/scenario.py "$LAB_DIR/work" "$@"
