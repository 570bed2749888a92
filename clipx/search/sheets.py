"""Contact sheets of samples of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.picture_grid import Section, Tile, num_that_fit, write_grid
from clipx.search.corpus_pictures import CorpusPictures, PictureGone
from clipx.search.query import Index


@dataclass(frozen=True)
class Shown:
    """A sample of a sheet. lines: of text below its picture, above its key or caption"""

    row: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Samples below a title."""

    title: str
    samples: Sequence[Shown]


def write_sheet(index: Index, groups: Sequence[Group], path: Path) -> list[str]:
    """Draw the groups. Returns messages for the user: pictures that are gone are drawn as crossed
    boxes. Raises UserError.

    path: see `write_grid`
    """
    pictures = CorpusPictures.open(index.manifest)
    # From the numbers of samples alone, so that no picture is read for groups without room.
    heights = []
    for group in groups:
        heights.append(Section(group.title, [Tile(None, s.lines) for s in group.samples]).height)
    num_drawn = num_that_fit(heights)

    sections = []
    num_pictures = 0
    faults = []
    for group in groups[:num_drawn]:
        tiles = []
        for sample in group.samples:
            num_pictures += 1
            image = None
            try:
                image = pictures.read(index.metadata_of(sample.row))
            except PictureGone as error:
                faults.append(error.message)
            tiles.append(Tile(image, sample.lines))
        sections.append(Section(group.title, tiles))
    write_grid(sections, path)

    messages = [f"{path}: {num_pictures:,} pictures"]
    if num_drawn < len(groups):
        messages.append(f"{path} has room for {num_drawn} of {len(groups):,} groups")
    if faults:
        messages.append(
            f"{len(faults):,} of {num_pictures:,} pictures cannot be read again and are drawn as "
            f"crossed boxes; the first: {faults[0]}"
        )
        if pictures.fault:
            messages.append(pictures.fault)
    return messages
