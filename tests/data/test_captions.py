"""The captions of a sample, and how often each is drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import TOKENIZER, TOKENS, batch, batches
from samples import png

from clipx.data.captions import Caption, CaptionFields
from clipx.data.order import uniforms
from clipx.data.sample import Raw, SampleError
from clipx.data.sources import table

ONE = 1 - 2.0**-53
"""The largest number below 1."""


def raw(**text: Any) -> Raw:
    """Objects are the bytes of a .json member."""
    encoded = {k: json.dumps(v).encode() if isinstance(v, dict) else v for k, v in text.items()}
    return Raw("key", b"", encoded)


def groups(weights: Mapping[str, float], sample: Raw) -> tuple[tuple[float, tuple[str, ...]], ...]:
    return CaptionFields(weights).of(sample).groups


@pytest.mark.parametrize(
    ("fields", "sample", "expected"),
    [
        (["captions"], raw(json={"captions": "one"}), ["one"]),
        (
            ["captions"],
            raw(json={"captions": [" one ", "", "two\n", None, 3, " "]}),
            ["one", "two"],
        ),
        (["captions"], raw(json={"other": "x"}, txt=b"from txt\n"), ["from txt"]),
        (["captions"], raw(json={"captions": ""}, txt=b"from txt"), ["from txt"]),
        (["captions"], raw(json={"captions": {"a": "b"}}, txt=b"from txt"), ["from txt"]),
        (["captions"], raw(txt=b"from txt"), ["from txt"]),
        (["captions"], raw(txt="\u732b na\xefve".encode()), ["\u732b na\xefve"]),
        (["txt"], raw(json={"txt": "inside"}, txt=b"beside"), ["beside"]),
        (["cls"], raw(cls=b"7\n", txt=b"seven"), ["7"]),
        (["cls"], raw(txt=b"seven"), ["seven"]),
        (["json"], raw(json={"json": "a field of this name"}), ["a field of this name"]),
        (["a", "b"], raw(json={"b": ["x", "y"], "a": "z"}), ["z", "x", "y"]),
        (["a", "b"], raw(a="of a table", json={"a": "not this", "b": "x"}), ["of a table", "x"]),
        (["a"], raw(a=["of a", "table"]), ["of a", "table"]),
        (["a"], raw(a=None, txt="of a table"), ["of a table"]),
        (["a"], raw(a=3.5, txt="of a table"), ["of a table"]),
        (["a", "txt"], raw(json={"a": "x"}, txt=b"y"), ["x", "y"]),
    ],
)
def test_captions_are_found(fields: list[str], sample: Raw, expected: list[str]) -> None:
    assert CaptionFields(dict.fromkeys(fields, 1.0)).of(sample).texts == expected


@pytest.mark.parametrize(
    ("fields", "sample", "message"),
    [
        (["captions"], raw(), "no text in captions or txt; fields there: none"),
        (["a", "b"], raw(json={"alt": "x"}), "no text in a or b or txt; fields there: json, alt"),
        (["txt"], raw(txt=b" "), "no text in txt; fields there: txt"),
        (["a"], raw(json=b"[1]"), "no text in a or txt"),
        (["a"], raw(json=b"{", txt=b"x"), "json member does not parse: Expecting"),
        (["a"], raw(json=b"\xff\xfe{", txt=b"x"), "json member does not parse: 'utf"),
        (["a"], raw(json=b'{"a": ' + b"9" * 5000 + b"}"), "json member does not parse: Exceeds"),
        (
            ["a"],
            raw(json=b"[" * 100_000, txt=b"x"),
            "json member does not parse: maximum recursion",
        ),
        (["txt"], raw(txt=b"caf\xe9"), "not UTF-8: .* position 3"),
        (["a"], raw(json={"a": [["nested"]]}), "no text in a or txt"),
        (["txt"], raw(txt="x" * 50_001), "a text of 50,001 characters; at most 50,000"),
        (["a"], raw(a=["good", b"\xff"]), "a text of the list is not UTF-8"),
    ],
)
def test_a_sample_without_caption_is_an_error(fields: list[str], sample: Raw, message: str) -> None:
    with pytest.raises(SampleError, match=message) as caught:
        CaptionFields(dict.fromkeys(fields, 1.0)).of(sample)
    assert caught.value.stage == "caption"


def test_a_broken_json_that_is_not_needed_is_not_read() -> None:
    sample = raw(json=b"{", txt=b"x")
    assert CaptionFields({"txt": 1.0}).of(sample).texts == ["x"]


def test_fields_that_are_missing_leave_their_share_to_the_others() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    sample = raw(json={"a": "x", "c": ["y", "z"]})
    assert groups(weights, sample) == ((1.0, ("x",)), (3.0, ("y", "z")))
    assert groups(weights, raw(txt=b"t")) == ((1.0, ("t",)),)


def test_fields_are_drawn_by_weight_and_texts_of_a_field_alike() -> None:
    sample = raw(json={"alt": "a", "generated": ["g0", "g1", "g2"], "title": "t"})
    caption = CaptionFields({"alt": 2.0, "generated": 6.0, "title": 0.5}).of(sample)
    numbers = uniforms(0, np.arange(8500)[:, None], 1)[:, 0]
    counts = Counter(caption.draw(number) for number in numbers)
    # Of 8500 draws, n expected with a standard deviation of at most sqrt(n): 45 of 2000, 22 of 500.
    for text, expected in {"a": 2000, "g0": 2000, "g1": 2000, "g2": 2000, "t": 500}.items():
        assert abs(counts[text] - expected) < 4 * expected**0.5
    assert counts.total() == 8500


TEXTS = st.integers(1, 50).map(lambda n: tuple(map(str, range(n))))


@settings(max_examples=200, deadline=None)
@given(number=st.floats(0, ONE), texts=TEXTS)
def test_one_field_is_drawn_as_the_floor_of_number_times_texts(
    number: float, texts: tuple[str, ...]
) -> None:
    """What runs before there were several fields drew, and what FeatureCache draws."""
    assert Caption(((1.0, texts),)).draw(number) == texts[int(number * len(texts))]


@settings(max_examples=200, deadline=None)
@given(
    number=st.sampled_from([0.0, 5e-324, 0.5, 1 - 2.0**-52, ONE]) | st.floats(0, ONE),
    fields=st.lists(
        st.tuples(st.floats(1e-300, 1e300) | st.sampled_from([0.1, 0.2, 0.3, 1 / 3]), TEXTS),
        min_size=1,
        max_size=6,
    ),
)
def test_every_number_draws_a_text_of_the_field_that_has_its_share(
    number: float, fields: list[tuple[float, tuple[str, ...]]]
) -> None:
    named = tuple(
        (weight, tuple(f"{n}:{text}" for text in texts)) for n, (weight, texts) in enumerate(fields)
    )
    field, _, text = Caption(named).draw(number).partition(":")
    weights = [weight for weight, _ in fields]
    ends = np.cumsum(weights) / np.sum(weights)
    begin = ends[int(field)] - weights[int(field)] / np.sum(weights)
    assert begin - 1e-12 <= number <= ends[int(field)] + 1e-12
    assert text in fields[int(field)][1]


def test_the_ends_of_the_numbers_are_the_first_and_the_last_text() -> None:
    caption = Caption(((0.1, ("a", "b")), (0.2, ("c",)), (0.3, ("d", "e", "f"))))
    assert caption.draw(0.0) == "a"
    assert caption.draw(ONE) == "f"


def test_a_column_of_a_table_is_a_caption(tmp_path: Path) -> None:
    for n in range(2):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    (tmp_path / "t.csv").write_text("path,alt,title\n0.png,first alt,\n1.png,,second title\n")
    loaded = batch(
        batches(
            None,
            sources={"t": table.Config(path=str(tmp_path / "t.csv"))},
            caption_field={"alt": 1.0, "title": 3.0},
            global_batch_size=2,
            pad_to=TOKENS,
        ),
        0,
    )
    rows = [[token for token in row if token] for row in loaded.views["text"].tolist()]
    expected = [TOKENIZER.encode(text, TOKENS) for text in ("first alt", "second title")]
    assert sorted(rows) == sorted(expected)
