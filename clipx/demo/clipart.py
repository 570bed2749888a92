"""Open Clip Art from Debian's `openclipart-svg`: colorful drawings with amateur titles."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clipx.demo.drawings import Drawing, stable_hash, tidy, words

_NOT_A_TITLE = re.compile(
    r"(icon collection|gramastar|lemon svg|iconset|submission|sibmission|gradient collection"
    r"|aiga_symbol|gold-theme|various cliparts|openclipart|untitled|^card$|r16|^unnamed)",
    re.IGNORECASE,
)
_NOT_A_KEYWORD = re.compile(
    r"^(hash.*|0x[0-9a-f]+|clip ?art|openclipart|svg|unsorted|special|theme|geometry|magick)$",
    re.IGNORECASE,
)
_COLLECTION_FILES = 8  # a title on so many files is that of a collection, not of a drawing


def is_held_out(drawing: Drawing) -> bool:
    """Whether a drawing belongs to the 5 % of the test set."""
    return stable_hash(drawing.key, 20) == 0


def clipart_drawings(folder: Path) -> Iterator[Drawing]:
    """All drawings with a usable title, from the file's metadata or else from its name."""
    files = {}
    # Sorted, since the first of two files with one slug is kept.
    for path in sorted(folder.rglob("*.svg")):
        # Themed desktop icons, and some 1,400 stars that a script drew.
        parts = path.relative_to(folder).parts
        is_desktop_icon = parts[0] == "computer" and "icons" in parts
        if is_desktop_icon or path.name.startswith("star_"):
            continue
        metadata = _metadata(path)
        if metadata is not None:
            files[path] = metadata
    frequency = Counter(title for title, _, _ in files.values())
    slugs = set()
    for path, (title, keywords, author) in files.items():
        title = re.sub(r"^clipart by [^-]+-", "", title, flags=re.IGNORECASE)
        if not title or _NOT_A_TITLE.search(title) or frequency[title] >= _COLLECTION_FILES:
            title = _title_from_name(path.stem, author)
        without_numbers = re.sub(r"\(.*?\)|\d{2,}$", "", title)
        label = re.sub(r"( \d+)+$", "", words(without_numbers)).strip(" #")
        if len(label) < 3:
            continue
        relative = path.relative_to(folder)
        slug = re.sub(r"[^a-z0-9]+", "-", str(relative.with_suffix("")).lower())
        if slug in slugs:  # keys must be unique
            continue
        slugs.add(slug)
        tags = _tags(keywords, label, author)
        captions = [label, f"clip art of {label}"]
        if tags:
            captions += [f"{label}, {', '.join(tags[:4])}", f"{label}, {tags[0]}"]
        yield Drawing(
            key=f"openclipart_{slug}",
            captions=tidy(captions),
            label=label,
            kind="clipart",
            source="openclipart",
            license="CC-PDDC",
            path=str(path),
            tags=tuple(tags),
        )


def _metadata(path: Path) -> tuple[str, list[str], str] | None:
    """Title, keywords and author inside an SVG file."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError:  # resvg could not draw it either
        return None
    title = ""
    keywords = []
    author = ""
    for work in root.iter():
        if not work.tag.endswith("}Work"):  # namespaces differ from program to program
            continue
        for child in work:
            if child.tag.endswith("}title") and child.text:
                title = child.text.strip()
            elif child.tag.endswith("}creator"):
                author = " ".join("".join(child.itertext()).lower().split())
            elif child.tag.endswith("}subject"):
                keywords = []
                for item in child.iter():
                    text = (item.text or "").strip()
                    if item.tag.endswith("}li") and text:
                        keywords.append(text)
    return title, keywords, author


def _title_from_name(stem: str, author: str) -> str:
    """`red_car_john_smith_01` by John Smith -> `red car`"""
    parts = re.sub(r"_+\d*_*$", "", stem).split("_")
    while len(parts) > 1 and parts[-1]:
        last = parts[-1].strip(".")  # also an initial: `j.`
        if not any(name.startswith(last) for name in author.split()):
            break
        parts.pop()
    return " ".join(parts)


def _tags(keywords: list[str], label: str, author: str) -> list[str]:
    """Keywords that add to the label, each once."""
    tags = []
    for keyword in keywords:
        tag = words(keyword)
        if _NOT_A_KEYWORD.match(keyword) or not tag or tag in tags:
            continue
        # Many list the artist among the keywords.
        if tag not in label and tag not in author:
            tags.append(tag)
    return tags
