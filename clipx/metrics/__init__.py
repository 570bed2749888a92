"""Metrics as pure functions on tensors. Rates are fractions in [0, 1]."""

from clipx.metrics.classification import calibration_error as calibration_error
from clipx.metrics.classification import confusion as confusion
from clipx.metrics.classification import mean_per_class_recall as mean_per_class_recall
from clipx.metrics.classification import top_k_accuracy as top_k_accuracy
from clipx.metrics.classification import top_k_hits as top_k_hits
from clipx.metrics.clustering import adjusted_rand_index as adjusted_rand_index
from clipx.metrics.clustering import k_means as k_means
from clipx.metrics.clustering import (
    normalized_mutual_information as normalized_mutual_information,
)
from clipx.metrics.detection import auroc as auroc
from clipx.metrics.detection import nearest_neighbors as nearest_neighbors
from clipx.metrics.intervals import bootstrap_interval as bootstrap_interval
from clipx.metrics.intervals import mcnemar as mcnemar
from clipx.metrics.intervals import mean_interval as mean_interval
from clipx.metrics.intervals import median_interval as median_interval
from clipx.metrics.intervals import paired_bootstrap as paired_bootstrap
from clipx.metrics.intervals import wilson_interval as wilson_interval
from clipx.metrics.retrieval import PairRanks as PairRanks
from clipx.metrics.retrieval import count_closer as count_closer
