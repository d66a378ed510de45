"""The choice between the two orders of a packed set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from pipelines.errors import PipelineError
from pipelines.options import PipelineOptions, Policy
from pipelines.order.epoch import EpochOrder
from pipelines.order.mixture import Mixture
from pipelines.order.sharded import ShardedOrder
from shards import ShardSet
from shards.joined import JoinedSet

GLOBAL_UP_TO = 16_000_000
"""Samples up to which ``auto`` shuffles all of them together."""


def choose_policy(policy: Policy, samples: int) -> Literal["global", "sharded"]:
    """Resolve ``auto``: `global` up to 16 million samples, `sharded` beyond.

    Raises:
        PipelineError: the policy is unknown.
    """
    if policy not in get_args(Policy):
        raise PipelineError(f"order {policy!r} is unknown: use one of {', '.join(get_args(Policy))}")
    if policy == "auto":
        return "global" if samples <= GLOBAL_UP_TO else "sharded"
    return policy


def epoch_orders(
    shards: ShardSet | JoinedSet, options: PipelineOptions, *, global_batch: int, rank: int, world_size: int, seed: int
) -> Callable[[int], EpochOrder]:
    """The function that makes one rank's order of an epoch; arguments as for `pipelines.build`."""
    mixture = Mixture.of([len(each) for each in shards.sets], options.weights)
    samples = len(shards) if mixture is None else mixture.samples
    place = (samples, global_batch, rank, world_size, seed)
    # by the images that are there, of which an epoch may take few
    if choose_policy(options.order, len(shards)) == "global":
        return lambda epoch: EpochOrder(*place, epoch, mixture=mixture)
    window, lanes = options.order_window, options.order_lanes
    return lambda epoch: ShardedOrder(*place, epoch, ends=shards.ends, window=window, lanes=lanes, mixture=mixture)
