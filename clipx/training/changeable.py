"""Settings that may change between two starts of one run: how it runs, not what it computes."""

MAY_CHANGE = (
    "run_dir",
    "device",
    "tensorboard",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "save_async",
    "stop_after",
    "stop_margin",
    "timeout_minutes",
    "evaluators",
    "evaluate_at_start",
    "data.workers",
    "data.decoded_cache",
    "data.max_bad_fraction",
    "data.skip",
    "data.accept_changed_corpus",
    "duration",
    "micro_batch_size",
    "grad_checkpointing",
    "parallel",
    "compile",
    "max_nonfinite_steps",
    "pool.kind",
    "pool.chunk",
)
CORPUS_SETTINGS = (
    "data.shards",
    "data.sources",
    "data.weights",
    "data.repeat",
    "data.held_out",
    "data.held_out_by",
)
"""Settings that may also change if the user accepts another corpus."""


def is_among(setting: str, allowed: tuple[str, ...]) -> bool:
    """Whether a dotted setting is one of `allowed`, or a part of one."""
    # `data` allowed would allow `data.skip` too, but not `database`.
    return any(f"{setting}.".startswith(f"{name}.") for name in allowed)
