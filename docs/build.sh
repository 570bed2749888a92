#!/usr/bin/env bash
# Builds the site into build/docs/site: pages, search, and a reference of the Python functions. A broken link is an error.
#   bash docs/build.sh
# The generator lives in an environment of its own, .venv-docs, which this script makes. It needs neither clipx nor torch.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-docs/bin/python
mapfile -t packages < <(python3 -c "
import tomllib
with open('pyproject.toml', 'rb') as file:
    print(*tomllib.load(file)['project']['optional-dependencies']['docs'], sep='\n')")
if ! "$python" -c 'import zensical, mkdocstrings' 2>/dev/null; then
  python3 -m venv .venv-docs
  "$python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
fi
"$python" docs/site/stage.py
(cd build/docs && ../../.venv-docs/bin/zensical build --strict --clean)
echo "build/docs/site/index.html"
