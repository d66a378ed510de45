"""The bad images of a run: its quarantine file, those that no later batch tries again, and how many it bears."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines._lines import Lines, keep_lines
from pipelines._samples import Batch
from pipelines.errors import TooManyBadImages

log = logging.getLogger("pipelines")

_CAUSES = 3  # named in the error


def rewind(file: Path, epoch: int, step: int) -> None:
    """Drop the lines of a quarantine file from a batch on, before a run makes that batch and the later ones again.

    Args:
        file: the quarantine file; nothing is done where it is missing.
        epoch: of the first batch that is made again.
        step: of that batch.

    Raises:
        OSError: the file cannot be read or written.
    """
    keep_lines(file, lambda line: _place(line) < (epoch, step))


def _place(line: Mapping[str, Any]) -> tuple[int, int]:
    place = line.get("epoch"), line.get("step")
    return place if type(place[0]) is type(place[1]) is int else (-1, -1)  # type: ignore[return-value]


@dataclass(frozen=True)
class Bound:
    """How many distinct bad images a run bears.

    Attributes:
        most: their number.
        samples: images of the set, for the message.
        place: of the set, for the message.
    """

    most: int
    samples: int
    place: str


class Undecodable(dict[int, str]):
    """Images that are never given to a decoder again: id and cause. They outlive the process, whatever it saved.

    An image that cannot be decoded although its bytes are those packed stays so. One whose bytes differ is no such
    image: it is read again each time.

    Args:
        file: a JSON line for each image, from all ranks; None to remember them in memory alone.
        digest: of the set; lines of another set are passed over.
    """

    def __init__(self, file: Path | None, digest: str | None) -> None:
        self._lines, self._digest = Lines(file) if file and digest else None, digest
        for line in self._lines.new() if self._lines else ():
            if line.get("set") == digest and type(line.get("sample")) is int:
                self[line["sample"]] = str(line.get("cause"))

    def learn(self, causes: Mapping[int, str]) -> None:
        """Add images: id and cause."""
        new = {sample: cause for sample, cause in causes.items() if sample not in self}
        self.update(new)
        if self._lines is None or not new:
            return
        try:
            self._lines.append([{"sample": s, "cause": cause, "set": self._digest} for s, cause in new.items()])
        except OSError as error:  # it costs the next start another try of these images
            log.warning("%s cannot be written: %s", self._lines.path, error.strerror)


class Quarantine:
    """Logs each bad image once, appends it to a file, and ends a run that has too many of them.

    Args:
        file: a JSON line for each bad image, from all ranks; None for no file. Images that cannot be decoded are also
            in `undecodable.jsonl` beside it.
        digest: of the set; None if nothing identifies its images for another run.
        rank: whose images these are.
        bound: on the number of distinct bad images of all ranks and of the run's earlier starts; None for none.

    Attributes:
        undecodable: images that cannot be decoded; `Samples` and `StreamFeed` add to it.
    """

    def __init__(self, file: Path | None, digest: str | None, rank: int, bound: Bound | None = None) -> None:
        self._lines, self._rank, self._bound = Lines(file) if file else None, rank, bound
        self.undecodable = Undecodable(file.with_name("undecodable.jsonl") if file else None, digest)
        self._met: set[int] = set()
        self._recorded: set[int] = set()
        self._causes: dict[Any, str] = {}  # of all ranks, by sample
        self._unwritten: list[dict[str, Any]] = []
        for line in self._lines.new() if self._lines else ():
            if isinstance(line.get("sample"), dict | list):
                continue  # damaged
            self._causes[line.get("sample")] = str(line.get("cause"))
            if line.get("rank") == rank:
                self._recorded.add(line.get("sample", -1))
            # as earlier versions marked them
            if digest is not None and line.get("undecodable_in") == digest and type(line.get("sample")) is int:
                self.undecodable.setdefault(line["sample"], str(line.get("cause")))
        if self.undecodable and rank == 0:
            log.info("%d images cannot be decoded, by an earlier start, and are replaced", len(self.undecodable))

    def __len__(self) -> int:
        """Distinct bad images in the batches reported so far."""
        return len(self._met)

    def report(self, batch: Batch, epoch: int, step: int) -> None:
        """Log and record a batch's replaced images, each on its first encounter.

        Raises:
            TooManyBadImages: there are more than the bound allows.
        """
        found = False
        for _, bad in sorted(batch.replaced.items()):  # by place: the order must not depend on what was known before
            self._met.add(bad.sample)
            if bad.sample in self._recorded:
                continue
            found = True
            self._recorded.add(bad.sample)
            log.warning(
                "bad image: sample %d (%s, key %s%s) %s; replaced by sample %d at epoch %d, step %d, rank %d",
                *(bad.sample, bad.shard, bad.key, f": {bad.source}" if bad.source else "", bad.cause, bad.by),
                *(epoch, step, self._rank),
            )
            self._causes[bad.sample] = bad.cause
            line = {"sample": bad.sample, "shard": bad.shard, "key": bad.key, "source": bad.source, "cause": bad.cause}
            self._unwritten.append(line | {"replaced_by": bad.by, "epoch": epoch, "step": step, "rank": self._rank})
        if found:
            self._record()
            self._check()

    def _record(self) -> None:
        """Write this rank's lines, and read those of the others."""
        if self._lines is None:
            return
        try:
            self._lines.append(self._unwritten)
            self._unwritten.clear()
            new = [line for line in self._lines.new() if not isinstance(line.get("sample"), dict | list)]
            self._causes |= {line.get("sample"): str(line.get("cause")) for line in new}
        except OSError as error:  # no reason to end a run: they are in the log, and are tried again with the next ones
            log.warning("%s cannot be written: %s", self._lines.path, error.strerror)

    def _check(self) -> None:
        if self._bound is None or len(self._causes) <= self._bound.most:
            return
        # causes that differ in their numbers alone are of one kind, of which the first is shown
        of_kind = {re.sub(r"\d[\d,]*", "N", cause): cause for cause in reversed(self._causes.values())}
        kinds = Counter(re.sub(r"\d[\d,]*", "N", cause) for cause in self._causes.values())
        causes = "; ".join(f"{count:,} times: {of_kind[kind]}" for kind, count in kinds.most_common(_CAUSES))
        listed = f"{self._lines.path} lists them. " if self._lines else ""
        raise TooManyBadImages(
            f"{len(self._causes):,} of {self._bound.samples:,} images are bad, and --max-bad-images allows "
            f"{self._bound.most:,} ({causes}). {listed}Find the damage with `fastmoco verify {self._bound.place}`, "
            "repair the set and run the same command again, or allow more"
        )
