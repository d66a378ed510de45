"""What may change when a pretraining run is continued, and which settings make two runs the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastmoco.checkpoints import checkpoint
from fastmoco.checkpoints.checkpoint import Changed, CheckpointError, in_words
from fastmoco.config import Config, ConfigError
from fastmoco.flags import flag
from fastmoco.scalings import in_words as in_ranges
from pipelines.order.policy import choose_policy
from pipelines.views_file import differences

_NEUTRAL = {
    "recipe", "shards", "stream", "out", "resume", "threads", "prefetch", "max_bad_images",
    "checkpoint_every", "keep_checkpoints",
    "checkpoint_minutes", "keep_every", "checkpoint_space", "checkpoint_copy", "disk_patience",
    "on_nan", "max_rollbacks", "log_every", "rank_timeout", "notify", "profile", "wandb", "check_every", "knn_every",
    "knn_train", "knn_val", "knn_k", "knn_temperature",
}  # fmt: skip
"""Settings that do not determine the weights: runs that differ in them alone are the same. The data are compared by
their content."""
_FREE = {
    "init", "epochs", "steps", "precision", "compile", "cuda_graphs", "deterministic", "batch_norm_kernel", "pipeline",
    "accumulate", "decoder_load", "base_lr", "base_batch_size", "lr", "weight_decay", "momentum", "temperature",
    "momentum_key", "momentum_key_schedule", "bank_momentum", "symmetric", "schedule", "milestones", "decay",
    "decay_steps", "warmup", "drop_path", "checkpoint_activations",
}  # fmt: skip
"""Settings that may change in the middle of a run, which says so. The others decide the shapes of the weights, the
queue and its dtype, the order, or the views."""


Had = Callable[[Sequence[str]], bool]


def _never(digests: Sequence[str]) -> bool:
    return False


class Grown(CheckpointError):
    """A run's sets have more images than when it began.

    Attributes:
        digests: of each set at that time.
    """

    digests: tuple[str, ...] = ()


def check_compatible(
    path: Path,
    state: dict[str, Any],
    config: Config,
    digest: str,
    had: Had = _never,
    scaling: list[Any] | None = None,
) -> Changed:
    """Compare the settings and the data with those of a checkpoint.

    Args:
        path: the checkpoint.
        state: its content.
        config: the settings now.
        digest: digest of the data now.
        had: as of `Data.had`.
        scaling: as of `Data.scaling`.

    Returns:
        The settings that differ, of those that may: old and new value by name.

    Raises:
        Grown: the data are another only because images were appended.
        CheckpointError: training under `config` on these data would not continue the run.
    """
    fixed, free = _changed(state["config"], config, state["data"]["samples"])
    differing = _in_words(fixed)
    before = _digests(state["data"])
    if state["data"]["digest"] != digest and not differing and had(before):
        grown = Grown(f"{path} is of a run that began before images were appended to {config.shards}")
        grown.digests = before
        raise grown
    if state["data"]["digest"] == digest and state["data"].get("scaling") != scaling:
        ranges = (in_ranges(each) for each in (state["data"].get("scaling"), scaling))
        differing.append(f"values of 16 bits were scaled from {', now '.join(ranges)} (--percentiles of packing)")
    if state["data"]["digest"] != digest:
        place = config.stream or ", ".join(map(str, config.sets))
        if isinstance(places := state["config"]["shards"], list) and ", ".join(places) != place:
            place += f"; before: {', '.join(places)}"
        what = "tars were" if config.stream else "shard set was" if len(config.sets) == 1 else "shard sets were"
        differing.append(f"the {what} {state['data']['digest'][:12]}, now {digest[:12]} ({place})")
    if differing:
        # the file of --views may be another one by now
        of_file = any(name.startswith("views, ") for name in fixed)
        where = f" (--config {path.parent.parent / 'config.json'})" if of_file else ""
        raise CheckpointError(
            f"{path} is of another run: {'; '.join(differing)}. Use the same settings{where}, or another --out; "
            f"to begin a new run from its weights, give --init {path}"
        )
    return free


def compare(
    folder: Path,
    recorded: dict[str, Any],
    config: Config,
    samples: int,
    digest: str,
    had: Had = _never,
    scaling: list[Any] | None = None,
) -> tuple[list[str], list[str]] | None:
    """How a run in another folder differs from the one that `config` and these data ask for.

    Args:
        folder: its run folder.
        recorded: its config.json.
        config: the settings now.
        samples: images of the data now.
        digest: digest of the data now.
        had: as of `Data.had`; an unfinished run on the images before is the same run.
        scaling: as of `Data.scaling`.

    Returns:
        The settings under which it could not be continued, and the other ones that differ, as text; None for a run
        that is not of `fastmoco.train`.
    """
    try:
        fixed, free = _changed(recorded, config, samples)
    except (ConfigError, TypeError, ValueError):
        return None
    words = _in_words(fixed)
    if config.resume not in ("auto", "none") and recorded.get("resume") != config.resume:
        words += in_words({"--resume": (recorded.get("resume"), config.resume)})
    before, now = (str(settings.get("stream") or settings.get("shards")) for settings in (recorded, config.to_dict()))
    newest = checkpoint.found(folder / "checkpoints")
    if _is_of_other_data(newest[0], recorded, digest, had, scaling) if newest else before != now:
        words += in_words({"the data": (before, now)})
    return words, _in_words(free)


def _is_of_other_data(path: Path, recorded: dict[str, Any], digest: str, had: Had, scaling: list[Any] | None) -> bool:
    """Whether the newest checkpoint of a run is of other data; read without the tensors."""
    try:
        data = checkpoint.read(path, whole=False)["data"]
        if data["digest"] == digest:
            return data.get("scaling") != scaling
        grown = had(_digests(data))
    except (CheckpointError, LookupError, TypeError):  # resuming reports what is wrong
        return False
    # a finished run is followed by one on all images
    made = recorded.get("environment")
    total = made.get("total_steps") if isinstance(made, dict) else None
    return not grown or (isinstance(total, int) and checkpoint.step_of(path) >= total)


def _digests(data: dict[str, Any]) -> tuple[str, ...]:
    """Digests of each set in a checkpoint's record of its data."""
    return tuple(map(str, data.get("sets") or [data["digest"]]))


def _changed(recorded: dict[str, Any], config: Config, samples: int) -> tuple[Changed, Changed]:
    """Settings that differ: those that may not change in a run, and those that may; old and new value by name."""
    settings = {name: value for name, value in recorded.items() if name != "environment"}
    # a setting that the run did not know yet has its default
    was = Config.from_dict(settings)
    before, now = was.to_dict(), config.to_dict()
    # `auto` is compared as the order that it means for this set; runs from before the setting were in `global`
    for settings in (before, now):  # of their default, each is 1
        sets = settings["shards"] if isinstance(settings["shards"], list) else [settings["shards"]]
        settings["weights"] = settings["weights"] or [1.0] * len(sets)
    before["order"] = choose_policy(recorded.get("order", "global"), samples)
    now["order"] = choose_policy(config.order, samples)
    pairs = {name: (before[name], value) for name, value in now.items() if before[name] != value}
    pairs = _with_views(pairs, was, config)
    free = _FREE
    # BatchNorm's groups are the same whether a batch is split or comes in micro-batches
    if before["bn_splits"] * before["accumulate"] == config.bn_splits * config.accumulate:
        free = free | {"bn_splits"}
    fixed = {name: pair for name, pair in pairs.items() if name not in free | _NEUTRAL}
    return fixed, {name: pair for name, pair in pairs.items() if name in free}


def _with_views(pairs: Changed, was: Config, config: Config) -> Changed:
    """The settings that differ, of views from a file with the numbers that do, and without those of equal views."""
    numbers = differences(was.view_pair, config.view_pair)
    if numbers and was.views is config.views is None:
        return pairs  # papers' views have names
    others = {name: pair for name, pair in pairs.items() if name not in ("augmentation", "crop_min", "views")}
    return others | {f"views, {name}": pair for name, pair in numbers.items()}


def _in_words(changed: Changed) -> list[str]:
    # numbers of views have their names in the file
    return in_words({flag(name) if name.isidentifier() else f"--{name}": pair for name, pair in changed.items()})
