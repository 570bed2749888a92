"""The corpus of a run: opened once for all ranks, described, and compared after a restart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.captions import check_caption_fields
from clipx.data.concepts import read_concepts
from clipx.data.corpus import Corpus
from clipx.data.grouped_order import GroupedOrder
from clipx.data.held_out import held_out_message
from clipx.data.labels import check_contents
from clipx.data.loader import Batches
from clipx.data.negatives import NegativeTexts, num_drawn, read_negatives
from clipx.data.preprocessing import Preprocessing
from clipx.data.reinforcement import Reinforcement
from clipx.data.sample import Source
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.runtime import Runtime
from clipx.files import write_whole
from clipx.models.model_json import context_length, fixed_text_length, image_size
from clipx.progress import printable, progress
from clipx.training.config import TrainConfig
from clipx.types import UserError

_FILE = "corpus.tsv"
_MAX_SHOWN_FAULTS = 20
Table = Iterable[tuple[str, int, str]]
"""name, samples and digest of each shard"""


def open_together(config: TrainConfig, runtime: Runtime) -> Corpus:
    """Open the corpus on rank 0 and send it to the others, so that one process of a thousand looks
    at every shard, and all have the same corpus. Faults are raised on all ranks."""
    # Uneven ranks would give means over ranks another meaning than the mean over the batch.
    size = config.global_batch_size
    ranks = runtime.world_size
    if size % ranks:
        raise UserError(
            f"global_batch_size {size} is not a multiple of {ranks} ranks; "
            f"the nearest that fits is {max(1, round(size / ranks)) * ranks}"
        )

    check_groups(config)

    def open_and_check() -> tuple[Mapping[str, Any], np.ndarray | None, list[str]]:
        sources = config.data.open_sources()
        corpus = corpus_of(config, sources)
        negative_texts(config, corpus)  # raises for those of another corpus
        messages = held_out_message(sources)
        messages += [*check_caption_fields(corpus), *check_contents(corpus)]
        return sources, concepts_of(config, corpus), messages

    # Only tables travel. Each rank makes the order from them again, and all get the same one.
    sources, concepts, messages = runtime.on_main(open_and_check) or ({}, None, [])
    corpus = corpus_of(config, runtime.from_main(sources), runtime.from_main(concepts))
    corpus.messages += messages
    if isinstance(corpus.order, GroupedOrder):
        corpus.messages.append(corpus.order.describe())
    return corpus


def check_groups(config: TrainConfig) -> None:
    """Raise UserError for settings that an order with groups cannot follow."""
    data = config.data
    if data.group is None:
        return
    size = config.global_batch_size
    if size % data.group.size:
        nearest = max(1, round(size / data.group.size)) * data.group.size
        raise UserError(
            f"global_batch_size {size} is not a multiple of data.group.size {data.group.size}; "
            f"the nearest that fits is {nearest}"
        )
    if data.weights or data.repeat:
        raise UserError("data.group orders all samples by concept; leave out weights and repeat")
    if data.group.by == "label" and data.label_field is None:
        raise UserError("data.group.by label needs data.label_field, such as data.label_field=cls")
    has_captions = config.objective.contrasts_text and data.pair is None
    if data.group.by == "caption" and not has_captions:
        raise UserError("data.group.by caption: the objective reads no captions; group by label")


def concepts_of(config: TrainConfig, corpus: Corpus) -> np.ndarray | None:
    """(N,) concepts of the samples, if batches group them."""
    group = config.data.group
    if group is None:
        return None
    with progress(f"reading {group.by}s", int(corpus.sizes.sum())) as advance:
        return read_concepts(corpus, group.by, advance)


def corpus_of(
    config: TrainConfig, sources: Mapping[str, Source], concepts: np.ndarray | None = None
) -> Corpus:
    """Raises UserError."""
    return config.data.corpus(
        sources,
        seed=config.seed,
        needs_captions=config.objective.contrasts_text,
        concepts=concepts,
    )


def negative_texts(config: TrainConfig, corpus: Corpus) -> NegativeTexts | None:
    """Raises UserError."""
    if config.data.negatives is None:
        return None
    numbers = read_negatives(Path(config.data.negatives), corpus)
    return NegativeTexts(corpus, numbers, num_drawn(numbers, config.data.num_negatives))


def pixel_batches(
    config: TrainConfig, corpus: Corpus, model_json: dict[str, Any], *, rank: int, world_size: int
) -> Batches:
    """Batches for a model. Raises UserError."""
    reinforcement = None
    if config.data.reinforced is not None:
        reinforcement = Reinforcement(Path(config.data.reinforced), corpus, config.data)
    return Batches(
        config.data,
        corpus,
        build_tokenizer(model_json["text_cfg"]),
        image_size=image_size(model_json),
        fit=Preprocessing.of(model_json).fit,
        context_length=context_length(model_json),
        pad_to=fixed_text_length(model_json),
        global_batch_size=config.global_batch_size,
        rank=rank,
        world_size=world_size,
        augmentations=config.objective.augmentations(config.data.augmentation),
        reinforcement=reinforcement,
        negatives=negative_texts(config, corpus),
    )


def corpus_messages(corpus: Corpus, global_batch_size: int) -> list[str]:
    """Messages about the corpus before the first step."""
    faults = corpus.faults
    lines = [printable(f"{fault.shard}: {fault.message}") for fault in faults[:_MAX_SHOWN_FAULTS]]
    if faults[_MAX_SHOWN_FAULTS:]:
        lines.append(f"... and {len(faults) - _MAX_SHOWN_FAULTS} more shards; see quarantine.jsonl")
    lines += corpus.messages
    if corpus.skip:
        count = sum(map(len, corpus.skip.values()))
        lines.append(f"{count} samples are skipped by data.skip or data.reinforced")
    if corpus.skip_unknown:
        lines.append(f"{corpus.skip_unknown} lines of data.skip name shards that are not here")
    if corpus.num_samples < global_batch_size:
        lines.append(
            f"the corpus has {corpus.num_samples} pairs, a global batch {global_batch_size}: "
            "every batch repeats some"
        )
    return lines


def write_table(folder: Path, table: Table) -> None:
    """Write corpus.tsv, for a later comparison by `changes`. Raises UserError."""
    # Names are paths or URLs, which may have tabs, but never in the two columns at the end.
    lines = "".join(f"{_in_one_line(name)}\t{n}\t{digest}\n" for name, n, digest in table)
    try:
        write_whole(folder / _FILE, lines)
    except OSError as error:
        raise UserError(f"{folder / _FILE} cannot be written: {error}; make room") from error


def changes(folder: Path, table: Table) -> str:
    """How a corpus differs from the one in corpus.tsv, in a few words."""
    path = folder / _FILE
    if not path.exists():
        return f"how it differs is unknown, for {path} is missing"
    try:
        old_table = _read_table(path)
    except (OSError, ValueError) as error:
        return f"how it differs is unknown, for {path} is damaged: {error}"
    # Older digests did not cover contents: they are the part before the colon.
    with_contents = any(":" in digest for _, _, digest in old_table)
    old = _by_name(old_table)
    new = _by_name(
        (_in_one_line(name), samples, digest if with_contents else digest.partition(":")[0])
        for name, samples, digest in table
    )
    parts: dict[str, list[str]] = {"added": [], "missing": [], "changed": []}
    parts["added"] = [name for name in new if name not in old]
    for name, shards in old.items():
        if name not in new:
            parts["missing"].append(name)
        elif shards != new[name]:
            before = sum(samples for samples, _ in shards)
            after = sum(samples for samples, _ in new[name])
            parts["changed"].append(f"{name} ({before:,} to {after:,} samples)")
    shown = []
    for change, names in parts.items():
        if names:
            rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
            shown.append(f"shards {change}: {', '.join(names[:5])}{rest}")
    return "; ".join(shown) or "the same shards in another order"


def _read_table(path: Path) -> list[tuple[str, int, str]]:
    """The table that `write_table` wrote. Raises OSError and ValueError."""
    table = []
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        if line:
            name, samples, digest = line.rsplit("\t", 2)
            table.append((name, int(samples), digest))
    return table


def _in_one_line(name: str) -> str:
    """Names of files may contain line breaks."""
    return name.translate({10: "\\n", 13: "\\r"})


def _by_name(table: Table) -> dict[str, list[tuple[int, str]]]:
    """Shards of different folders may have the same name."""
    shards: dict[str, list[tuple[int, str]]] = {}
    for name, samples, digest in table:
        shards.setdefault(name, []).append((samples, digest))
    return shards
