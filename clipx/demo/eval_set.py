"""A test set of the demo corpus, and how it is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.demo.tars import member_key, write_tar

COUNTS = "counts.json"  # beside the files of CLIP_benchmark's layout


@dataclass(frozen=True)
class EvalSet:
    """One test set in memory. A retrieval set has no classes.

    samples, train: (key, extension -> content)
    sources: Iconify set or package -> number of its images
    """

    samples: Sequence[tuple[str, dict[str, bytes]]]
    sources: dict[str, int]
    classes: Sequence[str] = ()
    templates: Sequence[str] = ()
    train: Sequence[tuple[str, dict[str, bytes]]] = ()

    def write(self, folder: Path) -> None:
        """Write the set beside `folder` and rename it into place."""
        unfinished = folder.with_name(f".{folder.name}.tmp")  # perhaps of an interrupted build
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "test").mkdir(parents=True)
        texts: dict[str, Sequence[str]] = {"test/nshards.txt": ["1"]}
        if self.classes:
            texts["classnames.txt"] = self.classes
            texts["zeroshot_classification_templates.txt"] = self.templates
        else:
            texts["dataset_type.txt"] = ["retrieval"]  # which CLIP_benchmark takes as the kind
        for name, lines in texts.items():
            (unfinished / name).write_text("\n".join(lines) + "\n", "utf-8")
        write_tar(unfinished / "test" / "0.tar", _members(self.samples))
        if self.train:
            (unfinished / "train").mkdir()
            (unfinished / "train" / "nshards.txt").write_text("1\n", "utf-8")
            write_tar(unfinished / "train" / "0.tar", _members(self.train))
        counts = {
            "images": len(self.samples),
            "classes": len(self.classes),
            "templates": len(self.templates),
            "sources": self.sources,
        }
        (unfinished / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", "utf-8")
        unfinished.rename(folder)  # a folder with this name is complete


def _members(samples: Sequence[tuple[str, dict[str, bytes]]]) -> Iterator[tuple[str, bytes]]:
    for key, fields in samples:
        for extension, content in fields.items():
            yield f"{member_key(key)}.{extension}", content
