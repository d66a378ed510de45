"""Which settings may change when a pretraining run is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmoco.config import Config
from fastmoco.runs.checkpoint import CheckpointError, differences
from pipelines.order.policy import choose_policy

_FREE = {
    "recipe", "init", "shards", "stream", "out", "epochs", "steps", "precision", "compile", "cuda_graphs",
    "deterministic", "resume", "batch_norm_kernel", "pipeline", "threads", "prefetch", "decoder_load",
    "checkpoint_every", "keep_checkpoints", "log_every", "knn_every", "knn_train", "knn_val", "knn_k",
    "knn_temperature", "base_lr", "base_batch_size", "lr", "weight_decay", "momentum", "temperature",
    "momentum_key", "momentum_key_schedule", "bank_momentum", "symmetric", "check_every",
    "schedule", "milestones", "decay", "decay_steps", "warmup",
}  # fmt: skip
"""Settings that may change. The others decide the shapes of the weights, the queue and its dtype, the order, or the
views."""


def check_compatible(path: Path, state: dict[str, Any], config: Config, digest: str) -> None:
    """Raise CheckpointError if training under `config` on these data would not continue the run of a checkpoint.

    Args:
        path: the checkpoint.
        state: its content.
        config: the settings now.
        digest: digest of the data now.
    """
    recorded = Config.from_dict(state["config"]).to_dict()  # a setting that the run did not know yet has its default
    current = config.to_dict()
    # `auto` is compared as the order that it means for this set; runs from before the setting were in `global`
    recorded["order"] = choose_policy(state["config"].get("order", "global"), state["data"]["samples"])
    current["order"] = choose_policy(config.order, state["data"]["samples"])
    differing = differences(recorded, {name: value for name, value in current.items() if name not in _FREE})
    if state["data"]["digest"] != digest:
        what, place = ("tars were", config.stream) if config.stream else ("shard set was", config.shards)
        differing.append(f"the {what} {state['data']['digest'][:12]}, now {digest[:12]} ({place})")
    if differing:
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differing)}. Use the same settings, or another --out; "
            f"to begin a new run from its weights, give --init {path}"
        )
