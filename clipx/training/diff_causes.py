"""The likely cause why two runs part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipx.config_diff import short
from clipx.training.changeable import CORPUS_SETTINGS, is_among
from clipx.training.run_diff import ROUNDING_SETTINGS, RunDiff

ORDER_SETTINGS = ("seed", "global_batch_size", "data", *CORPUS_SETTINGS)
RATE_SETTINGS = ("optim", "duration")
COMPUTERS = ("processes", "precision", "cpu", "gpu", "threads", "torch")
"""Entries of version.json that change how sums are rounded."""
LARGE = 1e-2
"""Relative difference of losses that rounding does not make in a step or two."""


def likely_causes(found: RunDiff) -> list[str]:
    """What probably made the runs part, or a statement on runs that did not; one at least."""
    if not found.num_common:
        return [
            f"no step is in both logs ({len(found.a.metrics)} and {len(found.b.metrics)} lines); "
            "let both run to a common multiple of their log_every"
        ]
    if not found.partings:
        return ["the logs are equal, bit by bit, at each step that both have"]
    names = {parting.series for parting in found.first_partings}
    if "fingerprint" in names:
        return _order_causes(found)
    if "train/lr" in names:
        changed = _named(found.settings, RATE_SETTINGS)
        return [f"the schedules differ: {changed or 'in the number of steps of an epoch'}"]
    return _computing_causes(found)


def _order_causes(found: RunDiff) -> list[str]:
    """Of runs that have seen other samples."""
    causes = []
    if found.corpus is not None:
        causes.append(f"the corpora differ: {found.corpus}")
    changed = _named(found.settings, ORDER_SETTINGS)
    if changed:
        causes.append(f"the runs draw other samples: {changed}")
    if found.a.num_bad != found.b.num_bad:
        counts = f"{found.a.num_bad} and {found.b.num_bad}"
        causes.append(f"bad samples were replaced by others: quarantine.jsonl has {counts} lines")
    return causes or [
        "settings and corpora are equal: a shard was changed without a change of its size, or "
        "another version of clipx draws another order"
    ]


def _computing_causes(found: RunDiff) -> list[str]:
    """Of runs with the same samples and learning rates."""
    causes = []
    others = {}
    for name, values in found.settings.items():
        if not is_among(name, ROUNDING_SETTINGS):
            others[name] = values
    if others:
        causes.append(f"settings of what is computed: {_named(others, tuple(others))}")
    rounding = (
        [_named(found.settings, ROUNDING_SETTINGS)] if len(others) < len(found.settings) else []
    )
    for name in COMPUTERS:
        if name in found.versions:
            left, right = found.versions[name]
            rounding.append(f"{name} {short(left)} / {short(right)}")
    if rounding:
        causes.append(f"sums are rounded in another order: {'; '.join(rounding)}")
    relative = next((x.relative for x in found.first_partings if x.relative is not None), None)
    if not others and relative is not None and relative > LARGE:
        causes.append(
            f"a difference of {relative:.1g} is much for rounding: the weights that both began "
            "with may differ (another file under the name of model.initial)"
        )
    if "commit" in found.versions or "clipx" in found.versions:
        causes.append("the code differs: see the versions")
    if len(found.a.starts) != len(found.b.starts):
        causes.append(f"the runs have {len(found.a.starts)} and {len(found.b.starts)} starts")
    return causes or [
        "nothing that is recorded differs: kernels of a GPU that add in no fixed order"
    ]


def _named(settings: Mapping[str, tuple[Any, Any]], among: tuple[str, ...]) -> str:
    shown = []
    for name, (left, right) in settings.items():
        if is_among(name, among):
            shown.append(f"{name} {short(left)} / {short(right)}")
    return "; ".join(shown)
