"""Queries of many threads are embedded together, and get what each alone would get."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from samples import picture

from clipx.data.decode import pixels_of
from clipx.search.query import Index
from clipx.serve.batching import Batcher
from clipx.types import UserError


def test_a_batch_gives_the_rows_of_single_queries(index: Index) -> None:
    batcher = Batcher(index.encoder, max_batch=16)
    texts = [f"a {'very ' * (n % 5)}long text {n}" for n in range(20)]
    images = [pixels_of(picture(n)) for n in range(3)]
    text_results = [batcher.submit("text", [text]) for text in texts]
    image_results = [batcher.submit("image", [batcher.fit(image)]) for image in images]
    batcher.start()  # all have arrived
    for text, result in zip(texts, text_results, strict=True):
        torch.testing.assert_close(result.result(20), index.encoder.encode_text(text))
    for image, result in zip(images, image_results, strict=True):
        torch.testing.assert_close(result.result(20), index.encoder.encode_image(image))
    batcher.close()
    assert (batcher.num_batches, batcher.num_inputs) == (3, 23), "16 texts, 4 texts, 3 images"


def test_threads_get_their_own_rows(index: Index) -> None:
    batcher = Batcher(index.encoder)
    batcher.start()
    texts = [f"text {n}" for n in range(60)]
    with ThreadPoolExecutor(12) as pool:
        rows = list(pool.map(lambda text: batcher.encode_text([text]), texts))
    batcher.close()
    torch.testing.assert_close(torch.cat(rows), index.encoder.encode_text(texts))


class Picky:
    """An encoder that fails for one text."""

    image_size, scale = 8, 1.0

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        if "bad" in texts:
            raise UserError("a bad text")
        return torch.tensor([[float(len(text))] for text in texts])

    def encode_image(self, images: Any) -> torch.Tensor:
        raise AssertionError

    fit = encode_image

    def text_digest(self) -> str:
        return ""


def test_an_error_is_that_of_its_query_alone() -> None:
    batcher = Batcher(Picky())
    results = [batcher.submit("text", [text]) for text in ("a", "bad", "ccc")]
    batcher.start()
    assert results[0].result(20).tolist() == [[1.0]]
    with pytest.raises(UserError, match="a bad text"):
        results[1].result(20)
    assert results[2].result(20).tolist() == [[3.0]]
    batcher.close()
