"""Metrics as pure functions on tensors. Rates are fractions in [0, 1]."""

from clipx.metrics.classification import calibration_error as calibration_error
from clipx.metrics.classification import confusion as confusion
from clipx.metrics.classification import mean_per_class_recall as mean_per_class_recall
from clipx.metrics.classification import predictions as predictions
from clipx.metrics.classification import top_k_accuracy as top_k_accuracy
from clipx.metrics.classification import top_k_hits as top_k_hits
from clipx.metrics.detection import auroc as auroc
from clipx.metrics.detection import auroc_interval as auroc_interval
from clipx.metrics.intervals import best_interval as best_interval
from clipx.metrics.intervals import by_group as by_group
from clipx.metrics.intervals import class_mean_interval as class_mean_interval
from clipx.metrics.intervals import ends as ends
from clipx.metrics.intervals import median_interval as median_interval
from clipx.metrics.intervals import rate_interval as rate_interval
from clipx.metrics.intervals import rate_row as rate_row
from clipx.metrics.intervals import ratio_interval as ratio_interval
from clipx.metrics.intervals import student_interval as student_interval
from clipx.metrics.intervals import worst_interval as worst_interval
from clipx.metrics.paired import paired_test as paired_test
from clipx.metrics.retrieval import PairCounter as PairCounter
from clipx.metrics.retrieval import PairRanks as PairRanks
from clipx.metrics.retrieval import image_blocks as image_blocks
from clipx.metrics.similarity import nearest_neighbors as nearest_neighbors
from clipx.metrics.similarity import row_ids as row_ids
from clipx.metrics.similarity import similarities as similarities
from clipx.types import weighted_mean as weighted_mean
