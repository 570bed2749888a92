"""Find the bad samples of a corpus before a run meets them: read each sample, decode its picture
and choose its caption, as training does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset

from clipx.data.config import DataConfig
from clipx.data.corpus import Corpus
from clipx.data.sample import BAD_SAMPLE_ERRORS, BadSample

_CHUNK = 200  # samples: enough to outweigh the cost of a task, few enough to share out the last


def verify(
    config: DataConfig, corpus: Corpus, *, workers: int, advance: Callable[[int], None]
) -> Iterator[BadSample]:
    """The records that training would write to the quarantine: whole shards first, then samples in
    the order of the corpus. Positions are -1, since a sample has one in each epoch.

    advance: called with the number of samples done
    """
    yield from corpus.faults
    # A loader returns results in order and holds few of them, where a corpus has millions.
    loader = DataLoader(_Chunks(config, corpus), batch_size=None, num_workers=workers)
    for num_samples, bad in loader:
        advance(num_samples)
        yield from bad


class _Chunks(Dataset):
    """Item n is (number of samples, the bad ones among them) of the corpus's n-th chunk."""

    def __init__(self, config: DataConfig, corpus: Corpus) -> None:
        self.config = config
        self.corpus = corpus
        # A chunk lies in one shard, so that no two workers read the same part of a file.
        chunks = -(-corpus.sizes // _CHUNK)  # of each shard, rounded up
        self._chunk_ends = np.cumsum(chunks)

    def __len__(self) -> int:
        return int(self._chunk_ends[-1])

    def __getitem__(self, index: int) -> tuple[int, list[BadSample]]:
        shard = int(np.searchsorted(self._chunk_ends, index, side="right"))
        first_chunk = int(self._chunk_ends[shard - 1]) if shard else 0  # of the shard
        first = (index - first_chunk) * _CHUNK
        end = min(first + _CHUNK, int(self.corpus.sizes[shard]))
        bad = []
        for number in range(first, end):
            try:
                sample = self.corpus.read(shard, number)
                for image in sample.images:
                    self.config.pixels(image)
            except BAD_SAMPLE_ERRORS as error:
                bad.append(self.corpus.bad_sample(-1, shard, number, error))
            else:
                bad += self.corpus.notes(-1, shard, sample)
        return end - first, bad
