"""Metrics as pure functions on tensors. Rates are fractions in [0, 1]."""

from clipx.metrics.classification import (
    calibration_error,
    confusion,
    mean_per_class_recall,
    predictions,
    top_k_accuracy,
    top_k_hits,
)
from clipx.metrics.clusters import by_cluster, by_group
from clipx.metrics.detection import auroc, auroc_interval
from clipx.metrics.intervals import (
    add_rate,
    best_interval,
    class_mean_interval,
    median_interval,
    rate_interval,
    rate_row,
    ratio_interval,
    student_interval,
    weighted_mean,
    worst_interval,
)
from clipx.metrics.paired import paired_test
from clipx.metrics.retrieval import PairCounter, PairRanks, image_blocks
from clipx.metrics.similarity import nearest_neighbors, row_ids, similarities
