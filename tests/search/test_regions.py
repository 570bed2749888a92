"""Regions of a map have the names of what lies in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipx.search.regions import COARSEST, distinct_choices, label_regions
from clipx.search.vocabulary import Names, names_of_captions, read_names
from clipx.types import UserError

WIDTH = 24
NUM_TOPICS = 20
TOPICS = [f"topic {2 * chr(97 + n)}" for n in range(NUM_TOPICS)]


def topics(rows_a_topic: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 2) points in NUM_TOPICS heaps around a circle, (N, D) their rows, (V, D) their names."""
    generator = np.random.default_rng(0)
    topic = np.repeat(np.arange(NUM_TOPICS), rows_a_topic)
    angle = 2 * np.pi * topic / NUM_TOPICS
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points += 0.01 * generator.normal(size=points.shape)
    vectors = np.eye(NUM_TOPICS, WIDTH, dtype=np.float32)
    # All pictures have one direction in common, as the embeddings of a model do.
    rows = vectors[topic] + np.eye(WIDTH)[-1] * 3 + 0.1 * generator.normal(size=(len(topic), WIDTH))
    return points.astype(np.float32), rows.astype(np.float16), vectors


def test_each_region_has_the_name_of_its_rows() -> None:
    points, rows, vectors = topics(100)
    labels = label_regions(points, rows, Names(TOPICS), vectors, seed=0)
    coarse = [label for label in labels if label.level == 0]
    fine = [label for label in labels if label.level == 1]
    assert len(coarse) == COARSEST
    assert len(fine) == NUM_TOPICS, "each name once, though there are more regions"
    assert sum(label.num_rows for label in coarse) == len(rows)
    assert labels == sorted(labels, key=lambda label: label.level)
    for label in labels:
        angle = 2 * np.pi * TOPICS.index(label.text) / NUM_TOPICS
        distance = np.hypot(label.x - np.cos(angle), label.y - np.sin(angle))
        # A coarse region has two topics at most.
        assert distance < (0.05 if label.level == 1 else 0.36)
    assert labels == label_regions(points, rows, Names(TOPICS), vectors, seed=0)


def test_a_name_that_all_pictures_are_near_to_is_none() -> None:
    points, rows, vectors = topics(30)
    common = np.concatenate([vectors, np.eye(WIDTH, dtype=np.float32)[-1:]])
    labels = label_regions(points, rows, Names([*TOPICS, "picture"]), common, seed=0)
    assert {label.text for label in labels} <= set(TOPICS)


def test_names_of_captions_are_of_captions_in_the_region() -> None:
    points, rows, vectors = topics(30)
    topic = np.repeat(np.arange(NUM_TOPICS), 30)
    captions = [f"{TOPICS[each]}, thing" for each in topic]
    names = names_of_captions(captions)
    assert set(TOPICS) | {"thing"} <= set(names.texts)
    # By its embedding alone, each name fits some region best, but by chance.
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(len(names), WIDTH)).astype(np.float32)
    labels = label_regions(points, rows, names, vectors, seed=0)
    assert labels
    for label in labels:
        place = np.hypot(points[:, 0] - label.x, points[:, 1] - label.y).argmin()
        around = {TOPICS[(topic[place] + step) % NUM_TOPICS] for step in (-1, 0, 1)}
        assert any(label.text in text for text in around)
        assert label.text not in ("thing", "topic"), "all regions have them"


@pytest.mark.parametrize("count", [1, 3, 40])
def test_few_rows_have_labels_of_one_level(count: int) -> None:
    points, rows, vectors = topics(2)
    labels = label_regions(points[:count], rows[:count], Names(TOPICS), vectors, seed=0)
    assert {label.level for label in labels} <= {0}


def test_rows_that_share_a_place_are_one_region() -> None:
    _, rows, vectors = topics(100)
    points = np.zeros((len(rows), 2), dtype=np.float32)
    rows[:1500] = rows[0]
    labels = label_regions(points, rows, Names(TOPICS), vectors, seed=0)
    assert all((label.x, label.y, label.num_rows) == (0, 0, len(rows)) for label in labels)


def test_the_largest_margins_choose_first() -> None:
    margins = np.array(
        [[0.5, 0.4, -1.0], [0.9, 0.1, -1.0], [0.6, 0.45, -0.2], [0.3, 0.0, 0.14], [-0.1, -0.2, 0]]
    )
    assert distinct_choices(margins) == {1: 0, 2: 1}


def test_names_are_words_and_pairs_of_words_without_stop_words() -> None:
    captions: list[str | None] = ["Red car, a house of stone", "red car - icon 3", None, ""] * 5
    names = names_of_captions(captions)
    assert sorted(names.texts) == ["car", "house", "icon", "red", "red car", "stone"]
    assert names.texts[:3] == ["car", "red", "red car"], "the most frequent first"
    assert names.occurrences.toarray()[:, 0].tolist() == [1, 1, 0, 0] * 5
    assert names_of_captions([None, "7", "of"]).texts == []
    assert names_of_captions(["a cat", "a dog"]).texts == [], "none is repeated"


def test_names_of_a_file_or_a_published_list(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("a cat\n\n a dog \na cat\n")
    assert Names(read_names(str(file))) == Names(["a cat", "a dog"])
    assert len(read_names("imagenet")) > 990
    with pytest.raises(UserError, match="--names imagnet is neither a file with one name a line"):
        read_names("imagnet")
    file.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_names(str(file))
