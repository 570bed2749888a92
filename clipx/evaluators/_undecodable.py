"""Images of a test set that cannot be decoded: each is scored as a gray one, counted and named.

Leaving them out would change the set, so that scores on it would no longer compare; ending the
evaluation would make one picture worth more than all others. A gray one is a miss, but for chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from clipx.types import Result, Setting, UserError

MOST = 0.01
"""Share of a set that may be undecodable, beyond the first image."""


class UndecodableImage(UserError):
    """An image of a test set that cannot be decoded; the message names it."""


def gray(size: int) -> Tensor:
    """(3, size, size) uint8"""
    return torch.full((3, size, size), 127, dtype=torch.uint8)


class Reader:
    """Reads images for an encoder, gray ones for those that cannot be decoded.

    undecodable: row -> what is wrong with it, of those that this rank has read
    """

    def __init__(self, image: Callable[[int], Tensor], size: int) -> None:
        self.image, self.size = image, size
        self.undecodable: dict[int, str] = {}

    def __call__(self, row: int) -> Tensor:
        try:
            return self.image(row)
        except UndecodableImage as error:
            self.undecodable[row] = str(error)
            return gray(self.size)

    def report(self, found: list[dict[int, str]], count: int, setting: Setting) -> None:
        """Write what all ranks have found into the setting. Raises UserError where it is too much.

        found: `undecodable` of each rank; count: images of the set
        """
        rows = {row: text for part in found for row, text in part.items()}
        messages = [rows[row] for row in sorted(rows)]
        if len(messages) > max(1, MOST * count) or len(messages) == count > 0:
            raise UserError(f"{messages[0]}\n{len(messages)} of {count} images cannot be decoded")
        setting.undecodable.update(dict.fromkeys(messages))


def with_undecodable(result: Result, setting: Setting) -> Result:
    """The result with the number of undecodable images, and an alarm that names them."""
    messages = list(setting.undecodable)
    if not messages:
        return result
    shown = "; ".join(messages[:5]) + (f"; and {len(messages) - 5} more" if messages[5:] else "")
    alarm = f"{len(messages)} images cannot be decoded and are scored as gray ones: {shown}"
    return replace(
        result,
        metrics={**result.metrics, "num_undecodable": len(messages)},
        alarms=[*result.alarms, alarm],
    )
