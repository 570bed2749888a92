"""Where a run goes on: its newest checkpoint that is whole and belongs to the corpus."""

from __future__ import annotations

from pathlib import Path

from clipx import checkpoints
from clipx.checkpoints import Checkpoint
from clipx.data.stream import Corpus
from clipx.distributed.runtime import Runtime
from clipx.engine.corpus import changes
from clipx.engine.run import RunFolder
from clipx.engine.state import Parts
from clipx.types import UserError


def newest(
    runtime: Runtime, folder: RunFolder | None, corpus: Corpus, parts: Parts, *, accept: bool
) -> tuple[Checkpoint | None, list[str]]:
    """(the checkpoint, if there is one, and what to say). What rank 0 finds valid, all ranks load.
    Raises UserError.

    folder: on rank 0; accept: go on though the corpus has changed
    """
    found: tuple[Path | None, list[str]] = (None, [])
    if folder is not None:
        found = checkpoints.newest_valid(folder.checkpoints)
    path, messages = runtime.from_main(found)
    if path is None:
        return None, messages
    saved = checkpoints.load(path, parts.target)
    if saved.state.corpus_digest not in (corpus.digest, corpus.layout_digest):
        messages.append(_changed_corpus(runtime, folder, corpus, path, accept=accept))
    return saved, [*messages, f"resumed from {path} at step {saved.state.step}"]


def _changed_corpus(
    runtime: Runtime, folder: RunFolder | None, corpus: Corpus, path: Path, *, accept: bool
) -> str:
    """What differs from the corpus that the checkpoint was trained on. Raises UserError unless the
    user accepts it."""
    mine = changes(folder.path, corpus.table()) if folder is not None else ""
    told = runtime.from_main(mine)
    text = f"the corpus is not the one that {path} was trained on: {told}"
    if not accept:
        raise UserError(
            f"{text}. Give the old shards, start a new run_dir=, or go on with these by "
            "data.accept_changed_corpus=true"
        )
    return f"{text}. Going on: in this epoch some samples come twice or not at all"
