"""Continue from the newest checkpoint that is intact and belongs to the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest
from clipx.checkpoints.train_state import LaterVersion, LoadedCheckpoint
from clipx.data.corpus import Corpus
from clipx.distributed.runtime import Runtime
from clipx.training.corpus import changes
from clipx.training.learner import Learner
from clipx.training.run_folder import RunFolder
from clipx.types import UserError


def load_newest(
    runtime: Runtime,
    folder: RunFolder | None,
    corpus: Corpus,
    learner: Learner,
    *,
    accept_changed_corpus: bool,
) -> tuple[LoadedCheckpoint | None, list[str]]:
    """Load the newest checkpoint into the learner. Returns it, or None if there is none, with
    messages for the log. Rank 0 chooses it, and all ranks load it. Raises UserError.

    folder: on rank 0
    """
    messages: list[str] = []
    # An iterator, since verifying reads all of a checkpoint, and the newest is usually intact.
    candidates: Iterator[Path] = iter(())
    if folder is not None:
        candidates = manifest.valid_checkpoints(folder.checkpoints, messages)
    num_unreadable = 0
    while True:
        path = runtime.from_main(next(candidates, None))
        if path is None and num_unreadable:
            # The files are as they were written, so this run may be at fault. It must not start
            # anew and overwrite them.
            lines = runtime.from_main(messages)
            remedy = "no checkpoint is left; move them away to start again"
            raise UserError("\n".join([*lines, remedy]))
        if path is None:
            return None, runtime.from_main(messages)
        saved, own_fault = _load(path, learner)
        fault = runtime.first(own_fault)
        if saved is not None and fault is None:
            break
        messages.append(f"{fault}; it is skipped")
        num_unreadable += 1

    messages = runtime.from_main(messages)
    if not saved.state.corpus_digest:
        messages.append(f"{path} was imported from another program, so any corpus fits")
    # Older versions stored the digest of the layout alone.
    elif saved.state.corpus_digest not in (corpus.digest, corpus.layout_digest):
        differences = changes(folder.path, corpus.table()) if folder is not None else ""
        differences = runtime.from_main(differences)
        text = f"the corpus is not the one that {path} was trained on: {differences}"
        if not accept_changed_corpus:
            raise UserError(
                f"{text}. Give the old shards, start a new run_dir=, or go on with these by "
                "data.accept_changed_corpus=true"
            )
        messages.append(f"{text}. Going on: in this epoch some samples come twice or not at all")
    learner.load(saved)
    return saved, [*messages, f"resumed from {path} at step {saved.state.step}"]


def _load(path: Path, learner: Learner) -> tuple[LoadedCheckpoint | None, str | None]:
    """(checkpoint, None), or (None or checkpoint, fault): a manifest may list a file that was
    broken already when it was written. Raises LaterVersion, on all ranks alike."""
    try:
        saved = checkpoints.load(path, learner.target)
    except LaterVersion:
        raise
    except UserError as error:
        return None, str(error)
    misfit = learner.misfit(saved)
    return saved, misfit and f"checkpoint {path} does not fit this run: {misfit}"
