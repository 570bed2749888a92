"""`clipx compare` prints what `clipx eval` printed, and weighs captions as it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clipx import metrics
from clipx.comparison import compare
from clipx.eval_verb import print_comparison
from clipx.evaluators.retrieval import retrieval_result
from clipx.results import lines_of, write_results
from clipx.types import Result, UserError

CAPTIONS = torch.tensor([1, 5, 2, 3, 1, 4] * 5)
OWNER = torch.arange(30).repeat_interleave(CAPTIONS)


def evaluated(seed: int, owner: torch.Tensor = OWNER) -> Result:
    generator = torch.Generator().manual_seed(seed)
    closer = torch.randint(0, 4, (2, len(owner)), generator=generator)
    return retrieval_result(
        metrics.PairRanks(closer[0], closer[1], owner), list(map(str, range(30)))
    )


def written(folder: Path, result: Result) -> Path:
    folder.mkdir()
    write_results(folder, "model", {"set": result})
    return folder


def test_it_prints_the_values_of_the_evaluation(tmp_path: Path) -> None:
    """Images have one to five captions: a mean over captions is none over images."""
    results = [evaluated(seed) for seed in (0, 1)]
    found = compare(*(written(tmp_path / str(n), r) for n, r in enumerate(results)))
    values = [{line["metric"]: line["value"] for line in lines_of("", "", r)} for r in results]
    assert len(found) == 8
    for one in found:
        assert (one.first, one.second) == (values[0][one.metric], values[1][one.metric])
        assert one.low is None or one.low <= one.second - one.first <= one.high
        assert one.distinguishable == (one.p < 0.05)
    shares = results[0].samples["text_to_image_R@1"]
    assert abs(shares.mean().item() - values[0]["text_to_image_R@1"]) > 0.01


def test_the_table_leaves_out_an_interval_that_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = [torch.full((30,), 0.5).double(), torch.full((30,), 0.5).double()]
    arrays[1][:5] = 0.75
    folders = []
    for n, values in enumerate(arrays):
        result = Result(
            {"m": values.mean().item(), "num_samples": 30}, keys=list(map(str, range(30)))
        )
        result.samples["m"] = values
        folders.append(written(tmp_path / str(n), result))
    found = compare(*folders)
    assert found[0].low is None
    print_comparison(found)
    assert "+4.17%" in (shown := capsys.readouterr().out)
    assert "not distinguishable" in shown
    assert " to " not in shown


def test_results_of_an_older_clipx_are_read_and_other_captions_are_refused(tmp_path: Path) -> None:
    new, old = (written(tmp_path / name, evaluated(0)) for name in ("new", "old"))
    file = old / "samples/set.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{n: a for n, a in arrays.items() if not n.startswith("weights/")})
    assert all(one.first == one.second for one in compare(new, old))
    other = written(
        tmp_path / "other", evaluated(0, torch.arange(30).repeat_interleave(CAPTIONS.flip(0)))
    )
    with pytest.raises(UserError, match="other numbers of captions an image"):
        compare(new, other)
