"""Lengths of training such as `3 epochs`, and times such as `23h30m`, as text in a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

MAX_AMOUNT = 1e15  # below 2^53, a float holds steps and samples exactly
_MULTIPLES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_DURATION = re.compile(r"^\s*([0-9]*\.?[0-9]+)\s*([kMB]?)\s*(steps?|epochs?|samples?)\s*$")
_TIME = re.compile(
    r"^\s*(?:([0-9.]+)\s*d(?:ays?)?)?\s*(?:([0-9.]+)\s*h(?:ours?)?)?\s*"
    r"(?:([0-9.]+)\s*m(?:in(?:utes?)?)?)?\s*(?:([0-9.]+)\s*(?:s(?:ec(?:onds?)?)?)?)?\s*$"
)
_UNIT_SECONDS = (86400, 3600, 60, 1)  # of the four groups in _TIME


@dataclass(frozen=True)
class Duration:
    """A length of training: `2000 steps`, `3 epochs`, `400M samples`."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Raises ValueError."""
        match = _DURATION.match(text)
        amount = 0.0
        if match is not None:
            amount = float(match[1]) * _MULTIPLES[match[2]]
        if match is None or not 0 < amount < MAX_AMOUNT:
            raise ValueError(
                f"{text!r} is not a duration; "
                "write for example '2000 steps', '3 epochs' or '400M samples'"
            )
        return cls(amount, match[3].rstrip("s"))

    def steps(self, *, global_batch_size: int, epoch_samples: int) -> int:
        """Optimizer steps, rounded to the nearest and at least 1."""
        unit_samples = {"step": global_batch_size, "sample": 1, "epoch": epoch_samples}
        samples = self.amount * unit_samples[self.unit]
        return max(1, round(samples / global_batch_size))


def parse_seconds(text: str | float) -> float:
    """`15 minutes`, `23h30m`, `1 day 2 hours`, `90s` or plain seconds. Raises ValueError."""
    match = _TIME.match(str(text))
    seconds = 0.0  # an empty text matches too, and is refused below
    if match is not None:
        try:
            for number, unit in zip(match.groups(), _UNIT_SECONDS, strict=True):
                seconds += float(number or 0) * unit
        except ValueError:  # such as 1.2.3
            seconds = 0.0
    if not 0 < seconds < MAX_AMOUNT:
        raise ValueError(
            f"{text!r} is not a time; write for example '15 minutes', '23h30m' or 3600"
        )
    return seconds


def _check_duration(value: Any, units: Sequence[str] = ("epochs", "steps", "samples")) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        *first, last = [f"'{value} {unit}'" for unit in units]
        raise _explained(f"{value} has no unit; write {', '.join(first)} or {last}")
    if isinstance(value, str):
        try:
            Duration.parse(value)
        except ValueError as error:
            raise _explained(str(error)) from error
    return value


def _check_time(value: Any) -> Any:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            parse_seconds(value)
        except ValueError as error:
            raise _explained(str(error)) from error
    return value


def _check_interval(value: Any) -> Any:
    if isinstance(value, str):
        try:
            parse_seconds(value)
            return value
        except ValueError:  # not a time, so steps, epochs or samples
            pass
    return _check_duration(value, ("epochs", "steps", "minutes"))


def _explained(message: str) -> PydanticCustomError:
    """For `clipx.config_errors.complaints`, which prints the message alone."""
    return PydanticCustomError("explained", "{message}", {"message": message})


DurationText = Annotated[str, BeforeValidator(_check_duration)]
"""A setting that `Duration` parses."""
TimeText = Annotated[str | float, BeforeValidator(_check_time)]
"""A setting that `parse_seconds` parses."""
IntervalText = Annotated[str, BeforeValidator(_check_interval)]
"""Either of both, as text."""
