"""The config of a run from its file, with mistakes reported before torch is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config import Data, build, merge, parse_override, read
from clipx.config_outline import check_outline
from clipx.models.model_json import check_model_name
from clipx.types import UserError

if TYPE_CHECKING:  # they import torch
    from clipx.data.config import DataConfig
    from clipx.training.config import TrainConfig


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config file, apply `a.b=value` overrides and validate.

    Raises UserError with one line for each mistake, by dotted path. torch is imported only for a
    config whose names and values fit.
    """
    data = read(path, overrides)
    where = str(path)
    if "clipx.training.config" not in sys.modules:
        check_outline("clipx.training.config", "TrainConfig", data, where=where)
        check_model_name(data["model"]["name"])

    from clipx.training.config import TrainConfig

    return build(TrainConfig, data, where=where)


def load_data_config(corpus: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The data settings of a run's YAML file, or of shards given as a pattern. Raises UserError, as
    `load_config` does."""
    if corpus.endswith((".yaml", ".yml")):
        return load_config(Path(corpus), overrides).data
    if corpus.lower().endswith((".csv", ".tsv", ".parquet")):
        raise UserError(
            f"{corpus} is a table, and a path means shards here. Give a config: the YAML file of a "
            f"run with data: {{sources: {{pairs: {{name: table, path: {corpus}}}}}}}"
        )
    settings: Data = {"data": {"shards": corpus}}
    for override in overrides:
        settings = merge(settings, parse_override(override))
    for key in settings:
        if key != "data":
            raise UserError(f"override {key}: without a config file, only data.* can be set")
    where = "the command line"
    if "clipx.data.config" not in sys.modules:
        check_outline("clipx.data.config", "DataConfig", settings["data"], where=where)

    from clipx.data.config import DataConfig

    return build(DataConfig, settings["data"], where=where)
