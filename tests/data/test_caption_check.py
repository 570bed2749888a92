"""A misspelled field of captions is an error before a run, a rare one is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from samples import png, write_shard

from clipx.data.captions import PROBES, check_caption_fields
from clipx.data.config import DataConfig
from clipx.types import UserError


def shards(folder: Path, *shards: list[dict[str, Any]], txt: bool = True) -> str:
    """One list of .json members for each shard."""
    for number, fields in enumerate(shards):
        samples = {
            f"{number}-{n}": {"png": png(0), "json": own, **({"txt": "a text"} if txt else {})}
            for n, own in enumerate(fields)
        }
        write_shard(folder / f"{number}.tar", samples)
    return str(folder)


def check(where: Any, field: Any) -> list[str]:
    source = {"shards": where} if isinstance(where, str) else {"sources": where}
    config = DataConfig(**source, caption_field=field, streams=2, window=8)
    return check_caption_fields(config.open(seed=0))


BOTH = {"title": "a title", "description": "a long text"}


@pytest.mark.parametrize("field", [{"title": 0.5, "descripton": 0.5}, "descripton"])
def test_a_field_that_no_sample_has_is_an_error_with_a_guess(tmp_path: Path, field: Any) -> None:
    where = shards(tmp_path, [BOTH] * 4, [BOTH] * 3)
    message = (
        r"data\.caption_field 'descripton': none of 7 samples looked at has this field\. "
        r"Is 'description' meant\? .* fields there: description, title, txt"
    )
    with pytest.raises(UserError, match=message):
        check(where, field)


@pytest.mark.parametrize(
    "field", ["captions", "title", {"title": 1, "txt": 1}, {"title": 1, "rare": 1, "txt": 2}]
)
def test_fields_that_some_samples_have_are_none(tmp_path: Path, field: Any) -> None:
    """captions, the default, stands for .txt where a corpus has nothing else."""
    fields = [{"title": "x"}] * 8
    assert check(shards(tmp_path, fields, [*fields, {"rare": ["x"]}], fields), field) == []


def test_an_empty_field_is_absent(tmp_path: Path) -> None:
    where = shards(tmp_path, [{"title": "x", "empty": [" "]}] * 3)
    with pytest.raises(UserError, match="'empty': none of 3 samples"):
        check(where, {"title": 1, "empty": 1})


def test_samples_that_cannot_be_read_prove_nothing(tmp_path: Path) -> None:
    assert check(shards(tmp_path, ["{"] * 3), "title") == []  # type: ignore[list-item]
    with pytest.raises(UserError, match="none of 1 samples"):
        check(shards(tmp_path, ["{"] * 3 + [BOTH]), "titel")  # type: ignore[list-item]


def test_a_large_corpus_is_probed_from_end_to_end(tmp_path: Path) -> None:
    """Of each source, a few samples of each shard."""
    plain = [{"title": "x"}] * (PROBES // 2)
    where = {
        "a": {"name": "webdataset", "shards": shards(tmp_path / "a", plain, plain, plain)},
        "b": {"name": "webdataset", "shards": shards(tmp_path / "b", [{"only": "in b"}])},
    }
    assert check(where, {"title": 1, "only": 1}) == []
    with pytest.raises(UserError, match="'none': none of 1,001 samples"):
        check(where, {"title": 1, "none": 1})


def test_a_column_of_a_table_is_known_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("filepath,title\na.png,x\n")
    where = {"t": {"name": "table", "path": str(tmp_path / "t.csv")}}
    assert check(where, "title") == []
    with pytest.raises(UserError, match=r"'titel': the tables have no such text column\. Is 'ti"):
        check(where, "titel")


def test_a_remote_corpus_is_probed_in_one_shard_and_never_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(
        shards=shards(tmp_path, *[[BOTH] * 3] * 5), caption_field="titel", streams=2, window=8
    )
    corpus = config.open(seed=0)
    for opened in (corpus, corpus.sources["shards"]):
        monkeypatch.setattr(opened, "is_remote", True)
    (message,) = check_caption_fields(corpus)
    assert "'titel': none of 3 samples looked at has this field, all of one shard. Is" in message
