#!/usr/bin/env bash
# Builds the site into build/docs/site: pages, search, and a reference of the Python functions. A broken link is an error.
#   bash docs/build.sh
# The generator lives in an environment of its own, .venv-docs, which this script makes. It needs neither clipx nor torch.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} # 3.11 or newer
if ! .venv-docs/bin/python -c 'import zensical, mkdocstrings, ruff' 2>/dev/null; then
  mapfile -t packages < <("$python" -c "
import tomllib
with open('pyproject.toml', 'rb') as file:
    print(*tomllib.load(file)['project']['optional-dependencies']['docs'], sep='\n')")
  "$python" -m venv .venv-docs
  .venv-docs/bin/pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
fi
.venv-docs/bin/python docs/site/stage.py
(cd build/docs && ../../.venv-docs/bin/zensical build --strict --clean)
echo "look at it: python3 -m http.server --directory build/docs/site   (search needs a server)"
