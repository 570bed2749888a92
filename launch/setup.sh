# Makes .venv with clipx and the extras given as the first argument, once, and puts it on PATH. To be sourced from the root.
extras=${1:?extras, e.g. dev}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "clipx needs Python 3.11 or newer, $python is $("$python" -V); set PYTHON=" >&2; exit 2; }
stamp=.venv/.clipx-$(printf '%s' "$extras" | cat - pyproject.toml | sha256sum | cut -c1-16)
if [ ! -f "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # torch and torchvision first and together: the pair must match, and where the index offers no such pair (another
  # Python, another system), pip's own choice for the project follows.
  .venv/bin/python -c 'import torch, torchvision' 2>/dev/null || .venv/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 || true
  .venv/bin/pip install --quiet --editable ".[$extras]"
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
