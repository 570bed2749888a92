"""Differentiable sums and maxima over all candidates of a pool. A loss is plain PyTorch over these.

Rows and columns are B rows on each rank; row i of a rank matches its column i, which is called its
own. Each function compares this rank's rows with the columns of all ranks in tiles, never holds the
(B, N) matrix of logits, accumulates in float32, and computes tiles again in backward. Gradients
reach this rank's rows, the columns on the ranks that own them, scale and bias.

If the loss is a mean over local rows and gradients are averaged over ranks, as data-parallel
training does, R ranks of B rows get the gradient of one process with R * B rows.

Order of collectives: a call visits the pool once in forward and once in backward (`pairwise_mean`
in forward only). Ranks must make the same calls in the same order; backward runs in reverse. The
backward pass of a loss ends before that of the towers begins, so data-parallel buckets cannot come
in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipx.losses._expectation import ExpectationFunction
from clipx.losses._logsumexp import LogSumExpFunction, logaddexp, weighted_logsumexp
from clipx.losses._nearest import NearestFunction
from clipx.losses._sum import (
    Elementwise,
    SumFunction,
    TotalFunction,
    derivative_of,
    sums_with_negatives,
)
from clipx.losses._tiles import Match, Own, at_least_float32
from clipx.types import Negatives, Pool


class LogSumExp(NamedTuple):
    """rows: (B,) of this rank's rows over the columns of all ranks; columns: (B,) of this rank's
    columns over the rows of all ranks; -inf where no pair counts
    own_is_nearest: (B,) bool, whether a row's own column is nearer than all others; a tie is not
    largest_other: (B,) largest logit of a row with a column that is not its own
    """

    rows: Tensor
    columns: Tensor
    own_is_nearest: Tensor
    largest_other: Tensor


class PairwiseSum(NamedTuple):
    """rows: (B,) sums; own_is_nearest: as in `LogSumExp`"""

    rows: Tensor
    own_is_nearest: Tensor


class PairwiseMean(NamedTuple):
    """mean: () over this rank's rows; own_is_nearest: as in `LogSumExp`"""

    mean: Tensor
    own_is_nearest: Tensor


@torch.compiler.disable
def pairwise_logsumexp(
    rows: Tensor,
    columns: Tensor,
    pool: Pool | None,
    *,
    scale: Tensor | float = 1.0,
    ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    own: Own = "counts",
    row_weights: Tensor | None = None,
    column_weights: Tensor | None = None,
    negatives: Negatives | None = None,
) -> LogSumExp:
    """Log-sum-exp of the logits `scale * rows @ columns.T` over all candidates, both ways.

    One matmul in forward and three in backward (two where few tiles are all).

    rows: (B, D); columns: (B, D), or (M, D) with own="absent"; scale: ()
    pool: None for the columns of this rank alone
    ids: (B, K) int64; a pair that has one in common does not count, except a row's own column
    column_ids: (M, K), if they are not `ids`
    own: whether a row's own column counts, is left out, or is absent
    row_weights: (B,) positive, without gradient: terms of sums over rows are multiplied by them
    column_weights: (B,) the same for terms of sums over columns; with them, nearest means the
        largest weighted term
    negatives: further columns for the rows, and further rows for the columns, without gradient
    """
    scale = _scalar(scale, rows)
    column_ids = ids if column_ids is None else column_ids
    masks = (pool, ids, column_ids, own)
    if row_weights is None and column_weights is None:
        sums = LogSumExpFunction.apply(rows, columns, scale, *masks)
    else:
        sums = weighted_logsumexp(rows, columns, scale, row_weights, column_weights, *masks)
    row_lse, column_lse, own_logits, largest_other = sums
    # Further candidates: a log-sum-exp over two sets is the logaddexp of theirs.
    if negatives is not None:
        others = (scale, None, ids, negatives.ids, "absent")
        for_rows = LogSumExpFunction.apply(rows, negatives.columns, *others)
        for_columns = LogSumExpFunction.apply(columns, negatives.rows, *others)
        row_lse = logaddexp(row_lse, for_rows[0])
        column_lse = logaddexp(column_lse, for_columns[0])
        largest_other = torch.maximum(largest_other, for_rows[3])
    return LogSumExp(row_lse, column_lse, own_logits > largest_other, largest_other)


@torch.compiler.disable
def pairwise_sum(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    columns: Tensor,
    pool: Pool | None,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
    ids: Tensor | None = None,
    column_ids: Tensor | None = None,
    match: Match = "different",
    own: Own = "counts",
    negatives: Negatives | None = None,
    derivative: Callable[[Tensor], Tensor] | None = None,
    row_sums: Callable[[Tensor], Tensor] | None = None,
) -> PairwiseSum:
    """Sum of `function(scale * row @ column + bias)` over all candidates of each row.

    function: elementwise and differentiable, for example `torch.nn.functional.softplus`
    rows, columns, pool, scale, ids, column_ids, own: as for `pairwise_logsumexp`
    bias: ()
    match: which pairs count: those without an id in common, or those with one; a row's own column
        counts in either case
    negatives: the sum of row i also has the further columns for row i and the further rows for
        column i
    derivative: of `function`, elementwise; None: by autograd
    row_sums: (r, c) -> (r,), if there is a faster way than `function(logits).sum(1)`. It may
        overwrite its argument, and so may `derivative`
    """
    scale = _scalar(scale, rows)
    bias = _scalar(bias, rows)
    column_ids = ids if column_ids is None else column_ids
    # autograd of a tile holds several copies of it, so a loss may give its derivative.
    functions = Elementwise(function, derivative or derivative_of(function), row_sums)
    sums, own_is_nearest = sums_with_negatives(
        SumFunction,
        rows,
        columns,
        scale,
        bias,
        functions,
        pool,
        ids,
        column_ids,
        own,
        match,
        negatives,
    )
    return PairwiseSum(sums, own_is_nearest)


@torch.compiler.disable
def pairwise_mean(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    columns: Tensor,
    pool: Pool | None,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
    ids: Tensor | None = None,
    own: Own = "counts",
    negatives: Negatives | None = None,
    derivative: Callable[[Tensor], Tensor] | None = None,
    row_sums: Callable[[Tensor], Tensor] | None = None,
) -> PairwiseMean:
    """The mean over this rank's rows of `pairwise_sum`, with its arguments.

    Its gradients are computed in the forward pass, which is the only visit of the pool: three
    matmuls in all instead of four.
    """
    scale = _scalar(scale, rows)
    bias = _scalar(bias, rows)
    functions = Elementwise(function, derivative or derivative_of(function), row_sums)
    grad = torch.is_grad_enabled()
    total, own_is_nearest = sums_with_negatives(
        TotalFunction, rows, columns, scale, bias, functions, pool, ids, ids, own, grad, negatives
    )
    return PairwiseMean(total / len(rows), own_is_nearest)


@torch.compiler.disable
def pairwise_expectation(
    rows: Tensor,
    columns: Tensor,
    teacher_rows: Tensor,
    teacher_columns: Tensor,
    teacher_lse: LogSumExp,
    pool: Pool | None,
    *,
    scale: Tensor | float = 1.0,
    teacher_scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(of rows (B,), of columns (B,)): the expectation of the logit minus the teacher's logit under
    the softmax of the teacher's logits over all candidates. No gradient reaches the teacher.

    rows, columns: (B, D), whose logits are `scale * rows @ columns.T`
    teacher_rows, teacher_columns: (B, T), whose logits are the same with teacher_scale
    teacher_lse: `pairwise_logsumexp` of the teacher's logits; pool: as above
    """
    with torch.no_grad():
        queries = at_least_float32(teacher_rows) * teacher_scale
    lse = (teacher_lse.rows.detach(), teacher_lse.columns.detach())
    student = (rows, columns, _scalar(scale, rows))
    return ExpectationFunction.apply(*student, pool, queries, teacher_columns.detach(), *lse)


@torch.compiler.disable
def nearest_candidates(
    rows: Tensor,
    columns: Tensor,
    pool: Pool | None,
    k: int,
    *,
    ids: Tensor | None = None,
    negatives: Negatives | None = None,
) -> Tensor:
    """(B, k) largest products `rows @ columns.T` of each row over all candidates, largest first,
    without its own column; -inf where fewer than k count. The gradient of an entry goes to its row
    and to the column that gave it.

    rows, columns, pool, ids: as for `pairwise_logsumexp`; negatives: further columns for the rows
    """
    best = NearestFunction.apply(rows, columns, k, pool, ids, ids, "left out")
    if negatives is not None:
        further = NearestFunction.apply(
            rows, negatives.columns, k, None, ids, negatives.ids, "absent"
        )
        best = torch.cat([best, further], 1).topk(k, dim=1).values
    return best


def _scalar(value: Tensor | float, like: Tensor) -> Tensor:
    # float64 rows keep a float64 scale: tests compare to 1e-10.
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.as_tensor(value, device=like.device, dtype=dtype)
