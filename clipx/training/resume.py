"""Where a run goes on: its newest checkpoint that is whole and belongs to the corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest
from clipx.checkpoints.format import Checkpoint
from clipx.checkpoints.train_state import LaterVersion
from clipx.data.corpus import Corpus
from clipx.distributed.runtime import Runtime
from clipx.training.corpus import changes
from clipx.training.learner import Learner
from clipx.training.run_folder import RunFolder
from clipx.types import UserError


def newest(
    runtime: Runtime, folder: RunFolder | None, corpus: Corpus, learner: Learner, *, accept: bool
) -> tuple[Checkpoint | None, list[str]]:
    """(the checkpoint, if there is one, and what to say). What rank 0 finds valid, all ranks load.
    Raises UserError.

    folder: on rank 0; accept: go on though the corpus has changed
    """
    messages: list[str] = []
    unreadable = 0
    valid: Iterator[Path] = iter(())
    if folder is not None:
        valid = manifest.valid_checkpoints(folder.checkpoints, messages)
    while True:
        path = runtime.from_main(next(valid, None))
        if path is None and unreadable:
            # Files are as they were written, so this run may be at fault: nothing is overwritten.
            lines = [
                *runtime.from_main(messages),
                "no checkpoint is left; move them away to start again",
            ]
            raise UserError("\n".join(lines))
        if path is None:
            return None, runtime.from_main(messages)
        saved, fault = _load(path, learner)
        faults = [text for text in runtime.gather(fault) if text is not None]
        if saved is not None and not faults:
            break
        messages.append(f"{faults[0]}; it is skipped")
        unreadable += 1
    messages = runtime.from_main(messages)
    if saved.state.corpus_digest not in (corpus.digest, corpus.layout_digest):
        messages.append(_changed_corpus(runtime, folder, corpus, path, accept=accept))
    return saved, [*messages, f"resumed from {path} at step {saved.state.step}"]


def _load(path: Path, learner: Learner) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint, or what is wrong with it: its manifest may list a part that was broken when the
    manifest was written. Raises LaterVersion, on all ranks alike."""
    try:
        saved = checkpoints.load(path, learner.target)
    except LaterVersion:
        raise
    except UserError as error:
        return None, str(error)
    misfit = learner.misfit(saved)
    return saved, misfit and f"checkpoint {path} does not fit this run: {misfit}"


def _changed_corpus(
    runtime: Runtime, folder: RunFolder | None, corpus: Corpus, path: Path, *, accept: bool
) -> str:
    """What differs from the corpus that the checkpoint was trained on. Raises UserError unless the
    user accepts it."""
    differences = changes(folder.path, corpus.table()) if folder is not None else ""
    differences = runtime.from_main(differences)
    text = f"the corpus is not the one that {path} was trained on: {differences}"
    if not accept:
        raise UserError(
            f"{text}. Give the old shards, start a new run_dir=, or go on with these by "
            "data.accept_changed_corpus=true"
        )
    return f"{text}. Going on: in this epoch some samples come twice or not at all"
