#!/usr/bin/env bash
# Passes the tests from a fresh clone: makes .venv, installs clipx, runs the gates and pytest.
#   bash launch/test.sh          what fits in eight minutes on 2 cores
#   bash launch/test.sh --all    the slow tests too
# Other arguments go to pytest, e.g. bash launch/test.sh -k order
set -euo pipefail
cd "$(dirname "$0")/.."

select=(-m "not slow")
arguments=()
for argument in "$@"; do
  if [ "$argument" = --all ]; then select=(); else arguments+=("$argument"); fi
done

source launch/setup.sh dev
ruff check .
ruff format --check .
pyrefly check
lint-imports
# Two threads for each of several processes on two cores is ten times slower than one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Two workers, each with whole files, so that a fixture of a file is made once; tests/conftest.py puts the longest first.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${select[@]}" "${arguments[@]}"
