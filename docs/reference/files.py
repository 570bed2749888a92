"""Writes docs/files.md: every file of clipx with the first sentence of its docstring.

python docs/reference/files.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
INTRODUCTION = """\
# The files of clipx

<!-- Written by `python docs/reference/files.py` from the docstrings of the code. -->

Every file of the package, by folder, with the first sentence of its docstring. To learn how it all
works, read [twelve of them](tour.md) in order; [decisions.md](decisions.md) has the reasons.
"""
FOLDERS = {
    "data": "From shards to batches",
    "data/sources": "Where samples come from: `data.sources`",
    "data/transfer": "Downloads of remote shards",
    "models": "Towers, their architectures and their weights",
    "models/initial": "The weights that a run starts from: `model.initial`",
    "losses": "`loss`, and the primitives over all candidates",
    "objectives": "What is trained: `objective`",
    "distributed": "Ranks, and what travels between them",
    "training": "The loop and all that a run needs",
    "checkpoints": "Folders that are complete or absent",
    "trackers": "Log files",
    "evaluators": "What is measured: `evaluators`",
    "metrics": "Numbers as pure functions",
    "search": "Embeddings of a corpus, indexes and what is done with them",
    "mining": "Hard negatives",
    "serve": "The search page and its HTTP API",
    "serve/page": "The page itself",
    "report": "`clipx report`",
    "migrate": "`clipx import`",
    "demo": "The demo corpus",
    ".": "Commands, configs, and the model as its users see it",
}
"""Folders of clipx in the order of the page, and what they have."""
OUTSIDE = """\
## Outside of the package

- `tests/` mirrors `clipx/`; [reference.py](../tests/reference.py) has the slow float64 oracles.
- `benchmarks/` measures every claim of speed beside the peer ([benchmarks.md](benchmarks.md)).
- `configs/` has experiments, each with its results; `launch/` starts them.
- `examples/` has a [notebook](../examples/one_pair.ipynb) and the pictures that it uses.
- [LOG.md](../LOG.md) has every experiment, failures too.
"""


def text() -> str:
    """The page."""
    files: dict[str, list[str]] = {folder: [] for folder in FOLDERS}
    for file in sorted([*(ROOT / "clipx").rglob("*.py"), *(ROOT / "clipx").rglob("*.js")]):
        sentence = first_sentence(file)
        if sentence:
            folder = file.parent.relative_to(ROOT / "clipx").as_posix()
            path = file.relative_to(ROOT).as_posix()
            files.setdefault(folder, []).append(f"- [{file.name}](../{path}): {sentence}")
    parts = [INTRODUCTION]
    for folder, lines in files.items():
        parts.append(f"## clipx/{folder}\n" if folder != "." else "## clipx\n")
        if folder in FOLDERS:  # a new folder has no title yet
            parts.append(f"{FOLDERS[folder]}.\n")
        parts += [*lines, ""]
    return "\n".join([*parts, OUTSIDE])


def first_sentence(file: Path) -> str:
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".js":
        comment = re.match(r"(?:// .*\n)+", source)
        prose = comment[0].replace("//", "") if comment else ""
    else:
        prose = ast.get_docstring(ast.parse(source)) or ""
    prose = re.sub(r"\s+", " ", prose.split("\n\n")[0]).strip()
    sentence = re.split(r"(?<=[.;]) ", prose)[0].rstrip(".;:")
    return f"{sentence}." if sentence else ""


if __name__ == "__main__":
    (DOCS / "files.md").write_text(text(), encoding="utf-8")
