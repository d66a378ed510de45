"""Progress output of a packing: a bar on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

import time
from collections import Counter, deque
from contextlib import ExitStack

from shards.format.manifest import QUARANTINE, Manifest, Quarantined
from shards.packing.plan import Plan
from shards.packing.sources import Source
from shards.progress import Bar, Pace
from shards.words import counted, display, human_bytes

_WINDOW = 30.0  # seconds over which rates are averaged


class Rates:
    """Counts of a packing, and their rates over the last half minute."""

    def __init__(self, total: int, before: int) -> None:
        self.total = total
        self.before = before
        self.images = self.bytes = self.quarantined = 0
        self.begun = time.monotonic()
        self._marks: deque[tuple[float, int, int]] = deque([(self.begun, 0, 0)])

    def add(self, images: int, size: int, quarantined: int) -> None:
        """Count work done."""
        self.images += images
        self.bytes += size
        self.quarantined += quarantined
        now = time.monotonic()
        self._marks.append((now, self.images, self.bytes))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW:
            self._marks.popleft()

    def rates(self) -> tuple[float, float]:
        """Images and bytes per second."""
        then, images, size = self._marks[0]
        seconds = max(time.monotonic() - then, 1e-3)
        return (self.images - images) / seconds, (self.bytes - size) / seconds

    def text(self) -> str:
        """Rates and number of images left out, on one line."""
        images, size = self.rates()
        return f"{images:,.0f} images/s  {size / 1e6:,.1f} MB/s  {self.quarantined:,} quarantined"


class Display:
    """A progress bar on a terminal, lines elsewhere.

    Args:
        shown: Whether to show anything.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._rates = Rates(0, 0)
        self._bar = Bar("pack", Pace(0), "{:,} of {:,} images", None)
        self._open = ExitStack()

    def note(self, text: str) -> None:
        """Print a line."""
        if self._shown:
            print(text, flush=True)  # also into a pipe: a large set takes hours

    def start(self, plan: Plan, before: int, resumed: int) -> None:
        """Begin; `before` of the plan's images, in `resumed` shards, are packed already."""
        size = human_bytes(plan.input_bytes) if plan.input_bytes else "size not known"
        self.note(f"packing {counted(plan.images, 'image')} ({size}) into {counted(plan.shards, 'shard')}")
        if resumed:
            self.note(f"continuing: {resumed:,} of {plan.shards:,} shards ({before:,} images) are packed already")
        self.begin(plan.images, before)

    def begin(self, total: int | None, before: int = 0, what: str = "pack", noun: str = "images") -> None:
        """Begin to count `total` images, None if their number is not known; `before` of them are done already."""
        self._rates = Rates(total or 0, before)
        count = f"{{:,}} of {{:,}} {noun}" if total else f"{{:,}} {noun}"
        self._bar = Bar(what, Pace(total or 0, before), count, self.note)
        if self._shown:
            self._open.enter_context(self._bar.shown())

    def advance(self, images: int, size: int, quarantined: int) -> None:
        """Count work done."""
        self._rates.add(images, size, quarantined)

    def tick(self) -> None:
        """Show the counts, if it is time."""
        self._bar.reach(self._rates.before + self._rates.images, self._rates.text())

    def stop(self) -> None:
        """End the bar."""
        self._open.close()

    def summary(
        self, manifest: Manifest, source: Source | None, left_out: list[Quarantined], without: list[str], out: str
    ) -> None:
        """Print the result; `source` is None for an iterable, `without` are the classes without an image."""
        classes = f", {counted(len(manifest.classes), 'class')}" if manifest.classes else ", no labels"
        self.note(
            f"packed {counted(manifest.samples, 'image')} into {counted(len(manifest.records), 'shard')}"
            f" ({human_bytes(manifest.bytes)}{classes}) in {display(out)}{self._speed()}"
        )
        if left_out:
            causes = Counter(entry.reason.split(":")[0] for entry in left_out).most_common()
            text = ", ".join(f"{count:,} {cause}" for cause, count in causes)
            self.note(f"left out {len(left_out):,} ({text}); see {display(f'{out}/{QUARANTINE}')}")
        reduced = sum(record.reduced for record in manifest.records)
        if reduced:
            is_are = "was" if reduced == 1 else "were"
            self.note(f"{counted(reduced, 'image')} of 16 bits {is_are} reduced to 8; --keep-16-bit keeps 16")
        own_range = sum(record.own_range for record in manifest.records)
        if own_range:
            of_each = "its own range" if own_range == 1 else "the range of each"
            self.note(f"{counted(own_range, 'image')} of floats or 32 bits became 8 bits by {of_each}")
        several = sum(record.several for record in manifest.records)
        if several:
            self.note(f"of {counted(several, 'TIFF')} with several pages the first page was packed, and no other")
        if source is not None and source.ignored:
            self.note(f"ignored {counted(source.ignored, 'file')} of other kinds, by name and first bytes")
        for text in source.notes() if source is not None else ():
            self.note(text)
        if without:
            names = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            self.note(f"no image was packed of {len(without):,} of {len(manifest.classes):,} classes: {names}")

    def _speed(self) -> str:
        rates = self._rates
        if not rates.images:
            return "; nothing was left to do"
        seconds = max(time.monotonic() - rates.begun, 1e-3)
        return f" at {rates.images / seconds:,.0f} images/s, {rates.bytes / seconds / 1e6:,.1f} MB/s"
