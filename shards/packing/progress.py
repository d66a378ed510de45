"""Progress output of a packing: a bar on a terminal, lines elsewhere, a summary at the end."""

from __future__ import annotations

import time
from collections import Counter, deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shards.format.manifest import QUARANTINE, Manifest, Quarantined
from shards.packing.plan import Plan
from shards.packing.sources import Source
from shards.words import counted, display, human_bytes

_WINDOW = 30.0  # seconds over which rates are averaged
_LINE_EVERY = 10.0  # seconds between lines without a terminal


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
        """Rates, number of images left out, and time left, on one line."""
        images, size = self.rates()
        text = f"{images:,.0f} images/s  {size / 1e6:,.1f} MB/s  {self.quarantined:,} quarantined"
        left = self.total - self.before - self.images
        return f"{text}  {_duration(left / images)} left" if images > 0 and left > 0 else text


def _duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"


class Display:
    """A progress bar on a terminal, lines elsewhere.

    Args:
        shown: Whether to show anything.
    """

    def __init__(self, shown: bool) -> None:
        # Without a terminal, rich assumes 80 columns: soft_wrap keeps each message of a log on one line.
        self._console = Console(quiet=not shown, highlight=False, soft_wrap=True)
        self._rates = Rates(0, 0)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = 0.0

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def start(self, plan: Plan, before: int, resumed: int) -> None:
        """Begin; `before` of the plan's images, in `resumed` shards, are packed already."""
        size = human_bytes(plan.input_bytes) if plan.input_bytes else "size not known"
        self.note(f"packing {counted(plan.images, 'image')} ({size}) into {counted(plan.shards, 'shard')}")
        if resumed:
            self.note(f"continuing: {resumed:,} of {plan.shards:,} shards ({before:,} images) are packed already")
        self._rates = Rates(plan.images, before)
        self._last_line = time.monotonic()
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                BarColumn(),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TextColumn("{task.fields[rates]}"),
            )
            bar = Progress(*columns, console=self._console, transient=True)
            self._task = bar.add_task("", total=plan.images, completed=before, rates="")
            bar.start()
            self._bar = bar

    def advance(self, images: int, size: int, quarantined: int) -> None:
        """Count work done."""
        self._rates.add(images, size, quarantined)

    def tick(self) -> None:
        """Show the counts, if it is time."""
        rates = self._rates
        if self._bar is not None:
            self._bar.update(self._task, completed=rates.before + rates.images, rates=rates.text())
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            self.note(f"{rates.before + rates.images:,} of {rates.total:,}  {rates.text()}")

    def stop(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def summary(
        self, manifest: Manifest, source: Source, left_out: list[Quarantined], without: list[str], out: str
    ) -> None:
        """Print the result; `without` are the classes without an image."""
        classes = f", {len(manifest.classes):,} classes" if manifest.classes else ", no labels"
        self.note(
            f"packed {counted(manifest.samples, 'image')} into {counted(len(manifest.records), 'shard')}"
            f" ({human_bytes(manifest.bytes)}{classes}) in {display(out)}{self._speed()}"
        )
        if left_out:
            causes = Counter(entry.reason.split(":")[0] for entry in left_out).most_common()
            text = ", ".join(f"{count:,} {cause}" for cause, count in causes)
            self.note(f"left out {len(left_out):,} ({text}); see {display(f'{out}/{QUARANTINE}')}")
        if source.ignored:
            self.note(f"ignored {counted(source.ignored, 'file')} of other kinds, by name and first bytes")
        for text in source.notes():
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
