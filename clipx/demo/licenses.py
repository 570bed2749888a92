"""Authors and licenses of the drawings in a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clipx.demo.drawings import license_of, load_set
from clipx.files import write_whole


@dataclass(frozen=True)
class Credit:
    """One source, its license, and the numbers of its drawings in training and test sets."""

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


def list_credits(modules: Path, train: Mapping[str, int], test: Mapping[str, int]) -> list[Credit]:
    """One credit per source with drawings in the corpus, and one for the words of emojibase."""
    credits = []
    for source in sorted({*train, *test, "emojibase-data"}):
        counts = (train.get(source, 0), test.get(source, 0))
        if source in _PACKAGES:  # whose credits no file of the package contains
            credits.append(Credit(source, *_PACKAGES[source], *counts))
            continue
        icon_set = load_set(modules, source)
        title = icon_set["info"]["name"]
        author = icon_set["info"]["author"]
        license_url = icon_set["info"]["license"].get("url", "")
        terms = (license_of(icon_set), license_url, author.get("url", ""))
        credits.append(Credit(source, title, author["name"], *terms, *counts))
    return credits


def write_licenses(out: Path, credits: list[Credit]) -> None:
    """Write `licenses.json` for programs and `LICENSES.md` for people."""
    rows = [asdict(credit) for credit in credits]
    write_whole(out / "licenses.json", json.dumps(rows, indent=1) + "\n")
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
    for credit in credits:
        title = _link(credit.title, credit.url)
        terms = _link(credit.license, credit.license_url)
        cells = [credit.source, title, credit.author, terms, str(credit.train), str(credit.test)]
        lines.append(f"| {' | '.join(cells)} |")
    write_whole(out / "LICENSES.md", "\n".join(lines) + "\n")


def _link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url else text
