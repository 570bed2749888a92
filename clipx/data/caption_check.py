"""Do the fields of data.caption_field exist? Looked at in a part of the corpus before a run."""

from __future__ import annotations

import difflib

import numpy as np

from clipx.data.captions import CaptionFields
from clipx.data.decode import BadImage
from clipx.data.sample import SampleError
from clipx.data.shards import in_threads
from clipx.data.sources.webdataset import close_shards
from clipx.data.stream import Corpus
from clipx.types import UserError

PROBES = 1000
"""Samples of each source that are looked at. A field that one sample in 200 has is missed in 1 of
150 corpora, and would be drawn so seldom that leaving it out changes nothing."""
DEFAULT = "captions"
"""A corpus of `.txt` captions alone needs no setting, so it may be without this field."""


def check_caption_fields(corpus: Corpus) -> list[str]:
    """Messages about fields that may be missing. Raises UserError naming a field that no sample
    has."""
    wanted = list(corpus.fields.weights)
    if wanted == [DEFAULT]:
        return []

    def names_in(place: tuple[int, int]) -> set[str] | None:
        try:
            return CaptionFields.names(corpus.raw(*place))
        except (SampleError, BadImage, OSError):
            return None  # the run's quarantine tells of it

    found = {name for source in corpus.sources.values() for name in source.fields or ()}
    if not set(wanted) - found:
        return []
    looked = 0
    for names in in_threads(names_in, _probes(corpus)):
        found |= names or set()
        looked += names is not None
    close_shards()  # or forked workers would inherit hundreds of open files
    missing = [name for name in wanted if name not in found]
    if not missing or not (looked or found):
        return []
    name = missing[0]
    close = difflib.get_close_matches(name, found - set(wanted), n=1)
    guess = f" Is {close[0]!r} meant?" if close else ""
    there = ", ".join(sorted(found)[:20]) or "none"
    text = f"data.caption_field {name!r}: none of {looked:,} samples looked at has this field"
    if not looked:
        text = f"data.caption_field {name!r}: the tables have no such text column"
    if corpus.is_remote:
        return [f"{text}, all of one shard.{guess} Fields there: {there}"]
    raise UserError(f"{text}.{guess} Correct it or leave it out; fields there: {there}")


def _probes(corpus: Corpus) -> list[tuple[int, int]]:
    """(shard, sample) spread evenly over each source; of a remote one, all of the shard that the
    run begins with."""
    first = np.cumsum([0, *(len(source.sizes) for source in corpus.sources.values())])
    begins = corpus.locate(np.arange(64)).shard.tolist()
    probes = []
    for source, low, high in zip(corpus.sources.values(), first[:-1], first[1:], strict=True):
        if source.fields is not None:
            continue
        shards = np.arange(low, high)
        if source.is_remote:
            shards = np.array([shard for shard in begins if low <= shard < high][:1], dtype=int)
        ends = np.cumsum(corpus.sizes[shards])
        total = int(ends[-1]) if len(ends) else 0
        numbers = np.unique(np.linspace(0, total - 1, min(PROBES, total)).astype(np.int64))
        at = np.searchsorted(ends, numbers, side="right")
        samples = numbers - (ends - corpus.sizes[shards])[at] if total else numbers
        probes += zip(shards[at].tolist(), samples.tolist(), strict=True)
    return probes
