"""The bad images of a run: its quarantine file, and those that no later batch tries again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pipelines._samples import Batch

log = logging.getLogger("pipelines")


class Quarantine:
    """Logs each bad image once, appends it to a file, and remembers those that cannot be decoded.

    An image that cannot be decoded although its bytes are those packed stays bad, so a run that continues in the same
    folder leaves it out from the start. One whose bytes cannot be read, or differ, is read again each time.

    Args:
        file: a JSON line for each bad image, from all ranks; None for no file.
        digest: of the set; lines of another set, or without a digest, count for the records only.
        rank: whose images these are.

    Attributes:
        undecodable: id and cause of images that cannot be decoded; `Samples` and `StreamFeed` add to it.
    """

    def __init__(self, file: Path | None, digest: str | None, rank: int) -> None:
        self._file, self._digest, self._rank = file, digest, rank
        self.undecodable: dict[int, str] = {}
        if file is not None and digest is not None and file.exists():
            self._read(file)
        self._recorded = set(self.undecodable)
        self._met: set[int] = set()
        if self.undecodable and rank == 0:
            log.info("%d images of %s cannot be decoded and are replaced", len(self.undecodable), file)

    def __len__(self) -> int:
        """Distinct bad images in the batches reported so far."""
        return len(self._met)

    def report(self, batch: Batch, epoch: int, step: int) -> None:
        """Log and record a batch's replaced images, each on its first encounter."""
        for bad in batch.replaced.values():
            self._met.add(bad.sample)
            if bad.sample in self._recorded:
                continue
            self._recorded.add(bad.sample)
            log.warning(
                "bad image: sample %d (%s, key %s) %s; replaced by sample %d at epoch %d, step %d, rank %d",
                *(bad.sample, bad.shard, bad.key, bad.cause, bad.by, epoch, step, self._rank),
            )
            if self._file is not None:
                line = {"sample": bad.sample, "shard": bad.shard, "key": bad.key, "cause": bad.cause}
                line |= {"replaced_by": bad.by, "epoch": epoch, "step": step, "rank": self._rank}
                if self._digest is not None and bad.sample in self.undecodable:
                    line["undecodable_in"] = self._digest
                self._file.parent.mkdir(parents=True, exist_ok=True)
                # all ranks append to one file: a single short write in append mode is not interleaved with another's
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")

    def _read(self, file: Path) -> None:
        for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
                if line["undecodable_in"] == self._digest:
                    self.undecodable[int(line["sample"])] = str(line["cause"])
            except (ValueError, KeyError, TypeError):  # an older line, or the end of one that a crash cut off
                continue
