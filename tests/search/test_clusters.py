"""k-means clusters and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipx.search import clusters as clustering
from clipx.search.cluster_names import names_by_class, names_by_words
from clipx.search.clusters import Clusters, cluster_rows, default_num_clusters
from clipx.search.vocabulary import read_names
from clipx.types import UserError

WIDTH = 8
SIZES = (120, 60, 30)


def separate() -> tuple[np.ndarray, np.ndarray]:
    """(rows around three axes, the axis of each)"""
    axis = np.repeat([2, 0, 5], SIZES)
    rows = 0.1 * np.random.default_rng(0).standard_normal((sum(SIZES), WIDTH))
    rows[np.arange(len(rows)), axis] += 1
    return F.normalize(torch.from_numpy(rows).float(), dim=1).numpy(), axis


@pytest.mark.parametrize("block", [13, 65_536])
def test_separate_clusters_are_found_the_largest_first(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustering, "MAX_SCORES", 3 * block)  # of three centers
    rows, axis = separate()
    found = cluster_rows(rows, 3)
    assert found.sizes.tolist() == list(SIZES)
    assert found.labels.tolist() == np.repeat([0, 1, 2], SIZES).tolist()
    assert found.centers.argmax(axis=1).tolist() == [2, 0, 5]
    similarity = (rows * found.centers[found.labels]).sum(axis=1)
    np.testing.assert_allclose(found.similarity, similarity, rtol=1e-5)
    np.testing.assert_allclose(found.cohesion[0], similarity[axis == 2].mean(), rtol=1e-5)
    assert found.typical(1, 1).tolist() == [120 + int(similarity[120:180].argmax())]


def test_the_seed_decides() -> None:
    rows = F.normalize(torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(1))).numpy()
    first = cluster_rows(rows, 12, seed=3)
    np.testing.assert_array_equal(first.labels, cluster_rows(rows, 12, seed=3).labels)
    assert (first.labels != cluster_rows(rows, 12, seed=4).labels).any()


def test_fewer_distinct_rows_than_clusters_give_fewer_clusters() -> None:
    rows, _ = separate()
    repeated = np.repeat(rows[[0, 130]], 20, axis=0)
    found = cluster_rows(repeated, 5)
    assert found.sizes.tolist() == [20, 20]


@pytest.mark.parametrize("count", [0, 211])
def test_a_number_of_clusters_that_cannot_be_is_refused(count: int) -> None:
    rows, _ = separate()
    with pytest.raises(UserError, match=rf"--clusters {count} is not in 1 \.\.\. 210"):
        cluster_rows(rows, count)


def test_the_default_number_grows_with_the_root_up_to_what_a_person_reads() -> None:
    assert [default_num_clusters(n) for n in (1, 2, 200, 8192, 10**6)] == [1, 1, 10, 64, 64]


def of_labels(labels: list[int]) -> Clusters:
    count = max(labels) + 1
    centers = np.eye(count, WIDTH, dtype=np.float32)
    return Clusters(np.array(labels), np.ones(len(labels), dtype=np.float32), centers)


def test_words_that_set_a_cluster_apart_name_it() -> None:
    texts = ["the red car", "car 12", "a blue car!", "blue cat", "Cat", None, "Ärger über Öl", ""]
    names = names_by_words(texts, of_labels([0, 0, 0, 1, 1, 1, 2, 3]))
    assert names == ["car, red, blue", "cat, blue", "ärger, öl, über", None]


def test_texts_without_words_give_no_names() -> None:
    assert names_by_words([None, "12", "a"], of_labels([0, 1, 1])) == [None, None]


class AxisEncoder:
    """The class name is the number of an axis, after the prompt."""

    def encode_text(self, texts: list[str], **other: Any) -> torch.Tensor:
        numbers = [int(text.removeprefix("no ")) for text in texts]
        return torch.eye(WIDTH)[numbers]


def test_a_cluster_has_the_name_of_most_of_its_pictures() -> None:
    encoder: Any = AxisEncoder()
    rows, _ = separate()
    found = cluster_rows(rows, 3)
    names = ["5", "1", "2", "0"]
    assert names_by_class(encoder, rows, found, names, ["no {c}"]) == ["2", "0", "5"]
    # The center is nearest to a class that one picture has, and two have another.
    lone = np.eye(WIDTH, dtype=np.float32)[[5, 1, 1]] * 0.6
    lone[0] *= 5
    one = Clusters(np.zeros(3, dtype=np.int64), np.ones(3), lone.mean(axis=0, keepdims=True))
    assert names_by_class(encoder, lone, one, names, ["no {c}"]) == ["1"]
    with pytest.raises(UserError, match="has no place for the class name"):
        names_by_class(encoder, rows, found, ["5"], ["no"])


def test_names_are_read_from_a_file_or_a_published_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\nred car\n")
    assert read_names(str(tmp_path / "names.txt")) == ["cat", "red car"]
    assert len(read_names("imagenet-r")) == 200
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_names(str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match="No such file or directory; give a text file"):
        read_names(str(tmp_path / "none.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_names(str(tmp_path / "bytes.txt"))
