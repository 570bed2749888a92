"""Authors and licenses of the drawings in a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from clipx.demo.drawings import license_of, load_set
from clipx.files import write_whole

# Packages that do not contain their credits:
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


def write_licenses(
    out: Path, modules: Path, train: Mapping[str, int], test: Mapping[str, int]
) -> None:
    """Write `licenses.json` for programs and `LICENSES.md` for people: one entry per source with
    drawings in the corpus, and one for the words of emojibase.

    train, test: source -> number of its drawings
    """
    entries = []
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
    for source in sorted({*train, *test, "emojibase-data"}):
        if source in _PACKAGES:
            title, author, license, license_url, url = _PACKAGES[source]
        else:  # an icon set, which contains its credits
            icon_set = load_set(modules, source)
            info = icon_set["info"]
            title = info["name"]
            author = info["author"]["name"]
            license = license_of(icon_set)
            license_url = info["license"].get("url", "")
            url = info["author"].get("url", "")
        entry = {
            "source": source,
            "title": title,
            "author": author,
            "license": license,
            "license_url": license_url,
            "url": url,
            "train": train.get(source, 0),
            "test": test.get(source, 0),
        }
        entries.append(entry)
        links = f"{_link(title, url)} | {author} | {_link(license, license_url)}"
        lines.append(f"| {source} | {links} | {entry['train']} | {entry['test']} |")
    write_whole(out / "licenses.json", json.dumps(entries, indent=1) + "\n")
    write_whole(out / "LICENSES.md", "\n".join(lines) + "\n")


def _link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url else text
