"""One order over the shards of all sources of a corpus: mixed by weight, or one after another."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from clipx.data.order import Mixture, Order
from clipx.data.sample import Source
from clipx.types import UserError


def check_shares(
    names: Collection[str], weights: Mapping[str, float], repeat: Mapping[str, int]
) -> None:
    """Raise UserError unless `data.weights` and `data.repeat` fit the names of the sources."""
    unknown = {*weights, *repeat} - {*names}
    if unknown:
        raise UserError(f"data.weights and data.repeat name no source: {sorted(unknown)}")
    if weights and (repeat or {*weights} != {*names}):
        raise UserError(
            "data.weights needs one weight for each source, and no data.repeat beside it; "
            f"sources: {sorted(names)}, weights: {sorted(weights)}"
        )


def order_of(
    sources: Mapping[str, Source],
    *,
    seed: int,
    streams: int,
    window: int,
    weights: Mapping[str, float],
    repeat: Mapping[str, int],
) -> tuple[Order | Mixture, np.ndarray]:
    """An order, and the shard of the corpus for each of its shards, (shards of the order,) int64.
    Raises UserError.

    weights, repeat: by the name of the source; see `DataConfig`
    """
    settings = {"seed": seed, "streams": streams, "window": window}
    if weights:
        # Each source has epochs of its own, and so an order of its own.
        orders = []
        shares = []
        for name, source in sources.items():
            orders.append(Order(source.sizes, **settings))
            shares.append(weights[name])
        mixture = Mixture(orders, shares, seed=seed)
        if not mixture.quota.all():  # a block would contain no sample of some source
            rarest = min(weights, key=weights.__getitem__)
            raise UserError(
                f"data.weights.{rarest} is below {1 / Mixture.BLOCK:.2%} of the mixture; "
                "raise it, or leave the source out"
            )
        return mixture, np.arange(mixture.first_shard[-1])
    # One order of all shards, those of a repeated source several times.
    parts = []
    sizes = []
    first = 0
    for name, source in sources.items():
        times = repeat.get(name, 1)
        parts += [np.arange(first, first + len(source.sizes))] * times
        sizes += [source.sizes] * times
        first += len(source.sizes)
    return Order(np.concatenate(sizes), **settings), np.concatenate(parts)
