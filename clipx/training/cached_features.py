"""Training on cached features: the locked trunks of both towers run once over the corpus, and steps
train the heads on their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipx.data.corpus import Corpus
from clipx.data.feature_build import Advance, Progress, build_images, build_texts
from clipx.data.feature_cache import FeatureBatches, FeatureCache, Trunks, augmentation_faults
from clipx.data.preprocessing import Preprocessing
from clipx.data.tokenizers import build_tokenizer
from clipx.distributed.runtime import Runtime
from clipx.models.locked import Split
from clipx.models.model_json import context_length, fixed_text_length, image_size
from clipx.progress import progress, silent
from clipx.training.config import TrainConfig
from clipx.training.interruption import Stop
from clipx.training.precision import autocast
from clipx.types import Stopped, StopRequested, UserError


def feature_batches(
    config: TrainConfig,
    runtime: Runtime,
    stop: Stop,
    corpus: Corpus,
    split: Split,
    model_json: dict[str, Any],
    dtype: torch.dtype,
) -> FeatureBatches:
    """Features of the whole corpus. All ranks compute what the cache lacks. Raises
    UserError, and Stopped on all ranks if one has to stop; features computed by then are kept."""
    assert config.cache_features is not None
    if faults := augmentation_faults(config.data):
        raise UserError("\n".join(faults))
    trunks = _trunks(split, model_json, runtime.device, dtype)
    # The cache's folder is named after the trunks, the corpus and the preprocessing, so that a
    # change of any of them computes features anew.
    cache = FeatureCache(Path(config.cache_features), corpus, trunks, config.data)
    share = {"rank": runtime.rank, "world_size": runtime.world_size}
    watched = stoppable(progress if runtime.is_main else silent, stop)
    if not runtime.gather(cache.complete)[0]:
        # Where all features are cached, the trunks take no memory of the device.
        split.image_trunk.to(runtime.device)
        split.text_trunk.to(runtime.device)
        _together(runtime, cache.folder, lambda: build_images(cache, watched, **share))
        _together(runtime, cache.folder, lambda: build_texts(cache, watched, **share))
        _together(runtime, cache.folder, cache.finish)
    return FeatureBatches(cache, global_batch_size=config.global_batch_size, **share)


def stoppable(progress: Progress, stop: Stop) -> Progress:
    """The same progress, which raises StopRequested once this rank has to stop."""

    @contextmanager
    def stoppable_progress(title: str, total: int) -> Iterator[Advance]:
        with progress(title, total) as advance:

            def advance_or_stop(count: int) -> None:
                advance(count)
                if stop.reason is not None:
                    raise StopRequested(stop.reason)

            yield advance_or_stop

    return stoppable_progress


def _together(runtime: Runtime, folder: Path, build: Callable[[], None]) -> None:
    """Call `build` on all ranks. If one fails or has to stop, all raise."""
    fault = None
    reason = None
    try:
        build()
    except StopRequested as request:
        reason = str(request)
    except OSError as error:
        fault = f"cache_features {folder} cannot be written: {error}"
    except UserError as error:
        fault = str(error)
    # Two collectives, which every rank completes, whatever happened to it.
    runtime.agree(fault)
    first = runtime.first(reason)
    if first is not None:
        raise Stopped(f"stopped by {first} while features are cached; those in {folder} are kept")


def _trunks(
    split: Split, model_json: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Trunks:
    preprocessing = Preprocessing.of(model_json)

    def run(trunk: nn.Module, x: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, dtype):
            return trunk(x)

    return Trunks(
        image=lambda pixels: run(split.image_trunk, preprocessing(pixels.to(device))),
        text=lambda ids: run(split.text_trunk, ids.to(device)),
        fit=lambda pixels: preprocessing.fit(pixels, image_size(model_json)),
        image_size=image_size(model_json),
        tokenizer=build_tokenizer(model_json["text_cfg"]),
        context_length=context_length(model_json),
        pad_to=fixed_text_length(model_json),
        digest=f"{split.digest} {preprocessing} {dtype}",
    )
