"""The pages of the site: links of the repository become links of the site, and docstrings lists."""

from __future__ import annotations

import re
import runpy
import sys
import types
from typing import Any

import pytest
from documented import PAGES
from ranks import ROOT

import clipx


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """docs/site/stage.py, after it has written all pages."""
    script = runpy.run_path(str(ROOT / "docs/site/stage.py"))
    folder = tmp_path_factory.mktemp("stage")
    # The functions look up their globals in the namespace of the script itself.
    names = script["main"].__globals__
    names |= {"STAGE": folder, "PAGES": folder / "pages"}
    script["main"]()
    return names


def test_all_pages_are_written(stage: dict[str, Any]) -> None:
    written = {path.name for path in stage["PAGES"].glob("*.md")}
    assert written == {"index.md", "api.md"} | {
        page.name for page in PAGES if page.name != "README.md"
    }


def test_links_of_the_pages_lead_to_pages_of_the_site(stage: dict[str, Any]) -> None:
    num_links = 0
    for page in stage["PAGES"].glob("*.md"):
        for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path = address.partition("#")[0]
            if not path or "://" in address:
                continue
            num_links += 1
            assert (page.parent / path).exists(), (page.name, address)
    assert num_links > 300


def test_a_file_of_code_has_a_page_that_shows_it(stage: dict[str, Any]) -> None:
    page = (stage["PAGES"] / "source/clipx/data/order.py.md").read_text()
    assert (ROOT / "clipx/data/order.py").read_text() in page
    assert "exclude: true" in page  # from the search
    tour = (stage["PAGES"] / "tour.md").read_text()
    assert "[data/order.py](source/clipx/data/order.py.md)" in tour


def test_the_reference_has_the_public_names(stage: dict[str, Any]) -> None:
    page = (stage["PAGES"] / "api.md").read_text()
    names = re.findall(r"^      heading: clipx\.(\w+)$", page, re.MULTILINE)
    assert sorted([*names, "__version__"]) == sorted(clipx.__all__)
    assert "::: clipx.embed.load\n" in page


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "docs/site/zensical.toml").read_text()
    pages = ["index.md" if page.name == "README.md" else page.name for page in PAGES]
    assert [page for page in [*pages, "api.md"] if f'"{page}"' not in nav] == []


def test_arguments_in_a_docstring_become_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    # griffe is installed in the environment of the site alone.
    griffe = types.SimpleNamespace(Extension=object, Object=object)
    monkeypatch.setitem(sys.modules, "griffe", griffe)
    as_markdown = runpy.run_path(str(ROOT / "docs/site/docstrings.py"))["as_markdown"]
    lines = [
        "What it does.",
        "rows: (B, D)",
        "    of unit norm",
        "k, n: numbers",
        "Raises it.",
    ]
    expected = [
        *("What it does.", ""),
        *("- `rows`: (B, D)", "    of unit norm", "- `k, n`: numbers", ""),
        "Raises it.",
    ]
    assert as_markdown("\n".join(lines)).splitlines() == expected


def test_the_site_makes_no_request_to_other_servers() -> None:
    """Fonts and scripts come with the pages."""
    settings = (ROOT / "docs/site/zensical.toml").read_text()
    assert "font = false" in settings
    assert "://" not in settings
