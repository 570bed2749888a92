# Makes .venv with clipx and the extras given as the first argument, once, and puts it on PATH. To be sourced from the root.
extras=${1:?extras, e.g. dev}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "clipx needs Python 3.11 or newer, $python is $("$python" -V); set PYTHON=" >&2; exit 2; }
stamp=.venv/.clipx-$(printf '%s' "$extras" | cat - pyproject.toml | sha256sum | cut -c1-16)
if [ ! -f "$stamp" ]; then
  echo "installing clipx and its libraries into .venv, once; torch is a large download" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # pip shows each download with a bar on a terminal, and a line for each package elsewhere, on stderr like all progress.
  install=(.venv/bin/pip install --disable-pip-version-check)
  # torch and torchvision first and together: the pair must match, and where the index offers no such pair (another
  # Python, another system), pip's own choice for the project follows.
  .venv/bin/python -c 'import torch, torchvision' 2>/dev/null || "${install[@]}" torch==2.14.1 torchvision==0.29.1 >&2 || true
  "${install[@]}" --editable ".[$extras]" >&2
  touch "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
