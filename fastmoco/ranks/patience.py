"""How long a rank waits for another one, against how long that may wait for its images."""

from __future__ import annotations

from fastmoco.flags import ConfigError
from shards.storage import network
from shards.storage.places import is_url


def check_timeout(rank_timeout: float, *places: object) -> None:
    """Raise ConfigError if a rank may wait longer for a store than the others wait for it.

    Args:
        rank_timeout: minutes that a rank waits for another one.
        places: the sets that are read; only those at a URL matter.
    """
    place = next((str(place) for place in places if is_url(str(place))), None)
    if place is None:
        return
    # the time limits of the first request and of the last come on top; the message of a rank that gives up, too
    least = (network.patient_seconds() + 2 * network.TIMEOUT) / 60
    if rank_timeout <= least:
        raise ConfigError(
            f"--rank-timeout is {rank_timeout:g} minutes, and must be more than the {least:g} that a rank may wait for "
            f"{place}; give more, or fewer seconds in {network.WAIT}"
        )
