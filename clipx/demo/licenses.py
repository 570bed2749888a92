"""Whose drawings a corpus holds and under which terms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clipx.demo.drawings import license_of, load_set
from clipx.demo.tars import write_text


@dataclass(frozen=True)
class Credit:
    """One source, its terms, and how many of its drawings are trained on and tested on."""

    source: str
    title: str
    author: str
    license: str
    license_url: str
    url: str
    train: int
    test: int


# source -> title, author, license, its address, address of the work
_PACKAGES = {
    "openclipart": (
        "Open Clip Art Library 0.18", "its contributors", "public domain",
        "https://creativecommons.org/publicdomain/", "https://openclipart.org",
    ),
    "fashion-mnist": (
        "Fashion-MNIST", "Zalando SE", "MIT",
        "https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE",
        "https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": (
        "MNIST digits", "Yann LeCun, Corinna Cortes; npm package by Juan Cazala",
        "CC-BY-SA-3.0 (images), MIT (package)",
        "https://creativecommons.org/licenses/by-sa/3.0/", "https://github.com/cazala/mnist",
    ),
    "emojibase-data": (
        "Emojibase (names and keywords)", "Miles Johnson", "MIT",
        "https://github.com/milesj/emojibase/blob/master/LICENSE",
        "https://github.com/milesj/emojibase",
    ),
}  # fmt: skip


def credits(modules: Path, train: Mapping[str, int], test: Mapping[str, int]) -> list[Credit]:
    """One credit per source with drawings in the corpus, and one for the words of emojibase."""
    found = []
    for source in sorted({*train, *test, "emojibase-data"}):
        counts = train.get(source, 0), test.get(source, 0)
        if source in _PACKAGES:
            found.append(Credit(source, *_PACKAGES[source], *counts))
            continue
        icon_set = load_set(modules, source)
        info = icon_set["info"]
        found.append(
            Credit(
                source=source,
                title=info["name"],
                author=info["author"]["name"],
                license=license_of(icon_set),
                license_url=info["license"].get("url", ""),
                url=info["author"].get("url", ""),
                train=counts[0],
                test=counts[1],
            )
        )
    return found


def write_licenses(out: Path, rows: list[Credit]) -> None:
    """`licenses.json` for programs, `LICENSES.md` for people."""
    write_text(out / "licenses.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [
        "# Licenses of the drawings in this folder",
        "",
        "Rendered on this machine from npm and Debian packages. Every sample's `.json` names its",
        "source and license. If you pass drawings on, keep to the terms below: several ask for",
        "attribution (CC-BY), some for sharing alike (CC-BY-SA).",
        "",
        "| source | title | author | license | training drawings | test images |",
        "|---|---|---|---|---:|---:|",
    ]
    for row in rows:
        title, terms = _link(row.title, row.url), _link(row.license, row.license_url)
        lines.append(
            f"| {row.source} | {title} | {row.author} | {terms} | {row.train} | {row.test} |"
        )
    write_text(out / "LICENSES.md", "\n".join(lines) + "\n")


def _link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url else text
