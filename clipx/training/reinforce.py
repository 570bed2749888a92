"""`clipx data reinforce`: a teacher's embeddings of a corpus, on all ranks of a launcher."""

from __future__ import annotations

from pathlib import Path

from clipx.data.config import DataConfig
from clipx.data.reinforcement import Manifest
from clipx.data.reinforcement_build import Build, TeacherModel
from clipx.distributed.runtime import Runtime
from clipx.embed import load
from clipx.progress import progress, silent
from clipx.training.precision import build_precision
from clipx.training.teachers import info_of
from clipx.types import PrecisionKind, UserError


def reinforce(
    data: DataConfig,
    model: str,
    out: Path,
    runtime: Runtime,
    *,
    num_views: int,
    precision: PrecisionKind = "auto",
) -> Manifest:
    """Write the embeddings of `num_views` views of each image and of each caption to `out`, or
    complete those that are there. Raises UserError.

    model: as `clipx eval` takes it; out: see `clipx.data.reinforcement`
    """
    if num_views > 1 and not data.augmentation.is_random:
        raise UserError(
            f"--views {num_views}: the augmentation has no randomness, so that all views would be "
            "alike; set data.crop_scale=[0.2,1] or the like, or --views 1"
        )
    sources = runtime.on_main(data.open_sources) or {}
    corpus = data.corpus(runtime.from_main(sources), seed=0)
    dtype = build_precision(precision, runtime.device).dtype
    # One rank downloads the model, and the others find it in the cache.
    encoder = runtime.main_first(lambda: load(model, device=runtime.device, dtype=dtype))
    teacher = TeacherModel(
        info=info_of(encoder),
        image=encoder.encode_image,
        text=encoder.encode_text,
        fit=encoder.preprocessing.fit,
        image_size=encoder.image_size,
    )
    build = Build(out, corpus, data, teacher, num_views)
    share = {"rank": runtime.rank, "world_size": runtime.world_size}
    watched = progress if runtime.is_main else silent
    what = f"embeddings are written to {out}"
    runtime.together(build.open_folder if runtime.is_main else None, what)
    runtime.together(lambda: build.build_shards(watched, **share), what)
    manifests: list[Manifest] = []
    finish = (lambda: manifests.append(build.finish())) if runtime.is_main else None
    runtime.together(finish, what)
    return runtime.from_main(manifests)[0]
