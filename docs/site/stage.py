"""Writes the pages of the site into build/docs/pages: the README, docs/*.md, the reference of the
Python functions, and every file of the repository that a page links to.

    python docs/site/stage.py

A link of a page to a file of code, such as `../clipx/types.py`, leads to a page of the site that
shows the file. Links to folders become plain text.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGE = ROOT / "build/docs"
PAGES = STAGE / "pages"
# A link, or code between backticks, which may look like one.
LINK = re.compile(r"(!?)\[((?:[^\]\\]|\\.)*)\]\(([^)\s]+)\)|`[^`\n]+`")
LANGUAGES = {".py": "python", ".js": "javascript", ".json": "json", ".ipynb": "json"}
LANGUAGES |= {".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".html": "html"}
PLAIN = "text"
MEDIA = (".png", ".webp", ".svg", ".jpg")


def main() -> None:
    shutil.rmtree(STAGE, ignore_errors=True)
    PAGES.mkdir(parents=True)
    shutil.copy(ROOT / "docs/site/zensical.toml", STAGE)
    Stage().write()


def page_of(file: str) -> str:
    """The page of the site for a file of the repository, both relative to their roots."""
    if file == "README.md":
        return "index.md"
    if file.startswith("docs/") and file.endswith(".md"):
        return file.removeprefix("docs/")
    if file.endswith(".md"):
        return f"source/{file}"
    if file.endswith(MEDIA):
        return file.removeprefix("docs/")
    return f"source/{file}.md"


class Stage:
    """Pages that are written, and the files that they link to."""

    def __init__(self) -> None:
        self._linked: set[str] = set()
        self._written: set[str] = set()

    def write(self) -> None:
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
            self._write_markdown(page.relative_to(ROOT).as_posix())
        (PAGES / "api.md").write_text(api_page(), encoding="utf-8")
        # Pages link to files, and files that are markdown themselves link to further ones.
        while waiting := sorted(self._linked - self._written):
            for file in waiting:
                if file.endswith(".md"):
                    self._write_markdown(file)
                elif file.endswith(MEDIA):
                    self._copy(file)
                else:
                    self._write_source(file)

    def _write_markdown(self, file: str) -> None:
        """A page with the links of the site in place of those of the repository."""
        self._written.add(file)
        text = (ROOT / file).read_text(encoding="utf-8")
        parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
        target = PAGES / page_of(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        changed = [part if part.startswith("```") else self._relinked(part, file) for part in parts]
        target.write_text("".join(changed), encoding="utf-8")

    def _relinked(self, text: str, file: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            mark, label, address = match.groups()
            path, hash_, anchor = (address or "").partition("#")
            if not path or "://" in path:
                return match[0]
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
            if not (ROOT / linked).exists():
                sys.exit(f"{file} links to {path}, which does not exist")
            if (ROOT / linked).is_dir():
                return label
            self._linked.add(linked)
            page = posixpath.relpath(page_of(linked), posixpath.dirname(page_of(file)) or ".")
            return f"{mark}[{label}]({page}{hash_}{anchor})"

        return LINK.sub(replaced, text)

    def _copy(self, file: str) -> None:
        self._written.add(file)
        target = PAGES / page_of(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, target)

    def _write_source(self, file: str) -> None:
        """A page that shows a file. It is not searched, as code would crowd out the prose."""
        self._written.add(file)
        language = LANGUAGES.get(Path(file).suffix, PLAIN)
        code = (ROOT / file).read_text(encoding="utf-8")
        if file.endswith(".ipynb"):
            content = notebook_page(code)
        else:
            content = f'# {file}\n\n````{language} linenums="1"\n{code}````\n'
        target = PAGES / page_of(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"---\nsearch:\n  exclude: true\n---\n\n{content}", encoding="utf-8")


def notebook_page(content: str) -> str:
    """The cells of a notebook and their outputs as markdown; links lose their target."""
    parts = []
    for cell in json.loads(content)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(LINK.sub(lambda match: match[2] or match[0], source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            elif picture := output["data"].get("image/png"):
                parts.append(f'<img alt="the picture" src="data:image/png;base64,{picture}">')
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """The public names of clipx, each with its signature and docstring by mkdocstrings."""
    tree = ast.parse((ROOT / "clipx/__init__.py").read_text(encoding="utf-8"))
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
    homes = ast.literal_eval(values["_HOMES"])
    parts = [
        "# Reference of the Python functions\n",
        "Public names of `clipx`, imported when they are first used. [python.md](python.md) shows",
        "how they are used.\n",
    ]
    # Functions, classes, and then the errors.
    for name, module in sorted(homes.items(), key=api_order):
        parts.append(f"::: {module}.{name}\n    options:\n      heading: clipx.{name}\n")
    return "\n".join(parts)


def api_order(name_and_module: tuple[str, str]) -> tuple[bool, bool, str]:
    name, module = name_and_module
    return module == "clipx.types", name[0].isupper(), name


if __name__ == "__main__":
    main()
