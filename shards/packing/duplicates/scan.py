"""Reading all images once for their fingerprints, a file for each shard of the plan, so that it can be continued."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.format.layout import shard_name
from shards.images.encode import Rejected
from shards.images.options import EncodeOptions
from shards.packing.duplicates.fingerprint import EXACT, NEAR, fingerprint
from shards.packing.fetch import fetch_each
from shards.packing.plan import WORK
from shards.packing.task import Done, Event, Progress, Work, Written, entries_of
from shards.storage.base import Store

PARTS = "fingerprints"


@dataclass(frozen=True)
class Scan(Work):
    """The fingerprints of the images of one shard.

    Attributes:
        plan: Identity of the plan that is compared.
        encoding: Options by which images are left out in any case.
        order: Folder with the order: that of the plan, or that of another set.
        kind: Kind of the source.
        leave_out: Whether images that cannot be reached are left out.
        near: Whether perceptual hashes are needed.
    """

    plan: str
    encoding: EncodeOptions
    order: str = WORK
    kind: str = ""
    leave_out: bool = False
    near: bool = True

    @property
    def name(self) -> str:
        """The shard's name."""
        return shard_name(self.number)

    @property
    def file(self) -> str:
        """The file that they are written to."""
        return part_name(self.plan, self.order, self.number)

    def steps(self, store: Store, report_every: float) -> Iterator[Event]:
        """See Work.steps."""
        entries = entries_of(self, store, self.order)
        found = np.zeros(len(entries), NEAR if self.near else EXACT)
        images = size = 0
        reported = time.monotonic()
        for row, (_, data) in enumerate(fetch_each(self.src, entries, self.leave_out, self.kind)):
            images += 1
            if not isinstance(data, Rejected):
                size += len(data)
                with contextlib.suppress(Rejected):  # packing says why
                    found[row] = fingerprint(data, self.encoding, self.near)
            if time.monotonic() - reported > report_every:
                yield Progress(images, size, 0)
                images = size = 0
                reported = time.monotonic()
        yield Progress(images, size, 0)
        yield Written()
        store.write(self.file, found.tobytes())
        yield Done(self.number)


def part_name(plan: str, order: str, shard: int) -> str:
    """Name of the fingerprints of one shard in the store."""
    return f"{WORK}/{PARTS}-{plan[:16]}/{order.rpartition('/')[2]}-{shard:06d}"
