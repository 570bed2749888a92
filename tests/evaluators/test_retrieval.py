"""Retrieval against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from color_encoder import ColorEncoder
from samples import png, solid, write_test_set

from clipx.evaluators import retrieval
from clipx.evaluators.retrieval import retrieval_metrics
from clipx.types import UserError

# Images A, B, C are the axes, so the numbers of a caption are its similarities to A, B, C.
CAPTIONS = {
    "a1": [0.6, 0.8, 0.0],  # of A: B is closer, rank 2
    "a2": [0.0, 0.8, 0.6],  # of A: both are closer, rank 3
    "b1": [0.0, 1.0, 0.0],  # of B: rank 1
    "c1": [0.0, 0.6, 0.8],  # of C: rank 1
    "c2": [0.8, 0.0, 0.6],  # of C: A is closer, rank 2
}
EXPECTED = {
    "image_to_text_R@1": 2 / 3,  # A finds c2 first, then a1
    "image_to_text_R@5": 1.0,
    "image_to_text_R@10": 1.0,
    "image_to_text_median_rank": 1.0,  # of 2, 1, 1
    "text_to_image_R@1": 2 / 5,
    "text_to_image_R@5": 1.0,
    "text_to_image_R@10": 1.0,
    "text_to_image_median_rank": 2.0,  # of 2, 3, 1, 1, 2
    "num_samples": 3,
}


def test_a_set_on_disk_by_hand(tmp_path: Path) -> None:
    path = write_test_set(
        tmp_path,
        {"A": {"png": solid((255, 0, 0)), "txt": "a1\na2"}},
        {
            "B": {"png": solid((0, 255, 0)), "txt": "\nb1\n\n"},  # empty lines are no captions
            "C": {"png": solid((0, 0, 255)), "txt": "c1\r\nc2\r\n"},
        },
    )
    found = retrieval.Config(path=str(path)).build().evaluate(ColorEncoder(CAPTIONS))
    assert found == pytest.approx(EXPECTED)


def test_recall_counts_the_best_five_and_ten() -> None:
    # Image i of 20 finds its only caption behind i others: their similarity is higher.
    similarity = torch.eye(20) * 0.5 + torch.ones(20, 20).tril(-1)
    found = retrieval_metrics(torch.eye(20), similarity.T.contiguous(), torch.arange(20))
    assert [found[f"image_to_text_R@{k}"] for k in (1, 5, 10)] == pytest.approx([0.05, 0.25, 0.5])
    assert found["image_to_text_median_rank"] == 10.5


def test_a_random_encoder_is_at_chance() -> None:
    # 1000 images: recall@10 is 1 % with a standard deviation of 0.32 %, the median rank 500 with
    # one of 1000 / 2 / sqrt(1000) = 16.
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(1000, 64, generator=generator), dim=-1)
        for _ in range(2)
    )
    found = retrieval_metrics(image, text, torch.arange(1000))
    for direction in ("image_to_text", "text_to_image"):
        assert abs(found[f"{direction}_R@10"] - 0.01) < 4 * 0.0032
        assert abs(found[f"{direction}_median_rank"] - 500) < 4 * 16


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"png": png(0)}, r"sample 0 of .* has no image or no \.txt member"),
        ({"png": b"", "txt": "x"}, "sample 0 of .* does not decode: 0 bytes"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(
    tmp_path: Path, members: dict[str, bytes | str], complaint: str
) -> None:
    path = write_test_set(tmp_path, {"0": members})
    with pytest.raises(UserError, match=complaint):
        retrieval.Config(path=str(path)).build().evaluate(ColorEncoder({}))


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no shards test/\*\.tar"):
        retrieval.Config(path=str(tmp_path)).build().evaluate(ColorEncoder({}))
