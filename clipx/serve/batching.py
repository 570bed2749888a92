"""Queries that arrive at the same time are embedded together."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clipx.types import ImageTextEncoder


@dataclass(frozen=True)
class _Job:
    """inputs: texts, or (3, S, S) uint8 pixels that fit the model"""

    kind: Literal["text", "image"]
    inputs: list[Any]
    result: Future[Tensor]


class Batcher:
    """An encoder for many threads. A thread of its own embeds all inputs that have arrived while it
    computed the batch before. A single query is embedded at once.

    max_batch: inputs that are embedded together, unless a single caller has more
    num_batches, num_inputs: so far
    """

    def __init__(self, encoder: ImageTextEncoder, *, max_batch: int = 64) -> None:
        self.encoder = encoder
        self.max_batch = max_batch
        self.num_batches = 0
        self.num_inputs = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="embed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what has been submitted."""
        self._jobs.put(None)
        self._thread.join()

    @property
    def image_size(self) -> int:
        return self.encoder.image_size

    @property
    def scale(self) -> float:
        return self.encoder.scale

    def fit(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, S, S) uint8, in the thread of the caller."""
        return self.encoder.fit(image)

    def text_digest(self) -> str:
        return self.encoder.text_digest()

    def encode_text(self, texts: list[str]) -> Tensor:
        """(N, D) of unit norm. Raises UserError."""
        return self.submit("text", list(texts)).result()

    def encode_image(self, images: list[Tensor]) -> Tensor:
        """(N, D) of unit norm. Raises UserError.

        images: (3, S, S) uint8 each, as `fit` returns them
        """
        return self.submit("image", list(images)).result()

    def submit(self, kind: Literal["text", "image"], inputs: list[Any]) -> Future[Tensor]:
        job = _Job(kind, inputs, Future())
        self._jobs.put(job)
        return job.result

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            is_last = False
            # Queries that have arrived during the last batch are embedded together.
            batch = [job]
            count = len(job.inputs)
            while count < self.max_batch:
                try:
                    following = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if following is None:  # of `close`; what came before it is still answered
                    is_last = True
                    break
                batch.append(following)
                count += len(following.inputs)
            for kind in ("text", "image"):
                self._embed(kind, [job for job in batch if job.kind == kind])
            if is_last:
                return

    def _embed(self, kind: Literal["text", "image"], jobs: list[_Job]) -> None:
        if not jobs:
            return
        inputs = []
        for job in jobs:
            inputs += job.inputs
        self.num_batches += 1
        self.num_inputs += len(inputs)
        try:
            if kind == "text":
                rows = self.encoder.encode_text(inputs)
            else:
                rows = self.encoder.encode_image(torch.stack(inputs))
        except Exception as error:  # noqa: BLE001  raised again where the result is awaited
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
                return
            # One of the queries causes the error, and the others must not fail with it.
            for job in jobs:
                self._embed(kind, [job])
            return
        first = 0
        for job in jobs:
            job.result.set_result(rows[first : first + len(job.inputs)])
            first += len(job.inputs)
