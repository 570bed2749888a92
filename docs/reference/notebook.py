"""Runs examples/one_pair.ipynb and stores its outputs, so that it can be read without running it.

    python docs/reference/notebook.py

No Jupyter is needed: the cells are run one after the other in one namespace.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples/one_pair.ipynb"


def run(notebook: dict[str, Any], names: dict[str, Any]) -> None:
    """Run the code cells in the folder of the notebook and put their outputs into them.

    names: the namespace, which has the variables of the cells afterwards
    """
    code_cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code_cells, 1):
        tree = ast.parse("".join(cell["source"]))
        last: ast.expr | None = None
        if isinstance(tree.body[-1], ast.Expr):
            last = tree.body.pop().value  # type: ignore[attr-defined]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.chdir(NOTEBOOK.parent):
            exec(compile(tree, str(NOTEBOOK), "exec"), names)
            value = None
            if last is not None:
                value = eval(compile(ast.Expression(last), str(NOTEBOOK), "eval"), names)
        cell["execution_count"] = number
        cell["outputs"] = outputs(printed.getvalue(), value, number)


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """What a cell has printed, and the picture or text of its last line."""
    found: list[dict[str, Any]] = []
    if printed:
        text = printed.splitlines(keepends=True)
        found.append({"name": "stdout", "output_type": "stream", "text": text})
    if value is None:
        return found
    data: dict[str, Any] = {"text/plain": [f"<{type(value).__name__}>"]}
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.quantize(64).save(buffer, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    result = {"data": data, "execution_count": number, "metadata": {}}
    found.append({"output_type": "execute_result", **result})
    return found


def main() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    run(notebook, {})
    content = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    NOTEBOOK.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
