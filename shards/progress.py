"""Progress of long work, on stderr: in a terminal a bar with n of N and the time left, elsewhere a line at times."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from shards.words import duration

FIRST_LINE, LINE_EVERY, SILENT = 3.0, 30.0, 2.0
"""Seconds after which work says its first line without a terminal, those between its lines, and those that a wait may
take without a word."""
_WINDOW = 30.0  # seconds over which a pace is measured
_MARKS = 10  # and at least this many advances, where each takes long

# a forced colour (FORCE_COLOR) makes no terminal: a bar in a log file would be a heap of control codes
console = Console(stderr=True, force_interactive=None if sys.stderr and sys.stderr.isatty() else False)


class Pace:
    """The time that work takes per item of late, and the time left.

    Pauses, such as the evaluations of a training, are measured apart: they come at known places.

    Args:
        total: items in all; 0 where their number is not known.
        done: items done before.
        warm_up: items at the start that are not measured, as they include compilations and filling caches.
        pause_every: items between pauses, of which the last item is followed by one; 0 for none.
        work: the work of the first N items, in a unit that takes the same time for each; None: all items take as long.

    Attributes:
        done: items done.
        pause: seconds of the last pause; None before the first.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        warm_up: int = 1,
        pause_every: int = 0,
        work: Callable[[int], float] | None = None,
    ) -> None:
        self.total, self.done, self.pause_every, self._work = total, done, pause_every, work or float
        self.pause: float | None = None
        self._measured_from, self._paused_at = done + warm_up, done
        self._marks: deque[tuple[float, int]] = deque()

    def reach(self, done: int) -> None:
        """Set the number of items done."""
        if done < self.done:  # a run that went back to an earlier step
            self._marks.clear()
        self.done = done
        if done < self._measured_from:
            return
        marks, now = self._marks, time.monotonic()
        if len(marks) > 1 and now - marks[-2][0] < 0.1:  # a mark for each of many quick items would be a long list
            marks.pop()
        marks.append((now, done))
        while len(marks) > _MARKS and now - marks[1][0] > _WINDOW:
            marks.popleft()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Measure a pause; it does not count as time of the items."""
        started = time.monotonic()
        try:
            yield
        finally:  # also of one that failed
            self.pause, self._paused_at = time.monotonic() - started, self.done
            self._marks = deque((when + self.pause, done) for when, done in self._marks)

    def each(self) -> float | None:
        """Seconds per item; None where not yet known."""
        if len(self._marks) < 2:
            return None
        (then, first), (now, last) = self._marks[0], self._marks[-1]
        return (now - then) / (last - first) if last > first else None

    @property
    def pauses_left(self) -> int:
        """Number of the pauses still to come."""
        every, done, total = self.pause_every, self.done, self.total
        if not every:
            return 0
        due = self._paused_at != done > 0 and (done % every == 0 or done == total)
        return due + (-(-total // every) - done // every if done < total else 0)

    def left(self) -> float | None:
        """Seconds left, pauses included once one was measured; None where not yet known."""
        each = self.each()
        if not self.total:
            return None
        if each is None:
            return 0.0 if self.done >= self.total else None
        (then, first), (now, last) = self._marks[0], self._marks[-1]
        ahead = (self._work(self.total) - self._work(self.done)) / (self._work(last) - self._work(first))
        return max(0.0, ahead * (now - then) - (time.monotonic() - now)) + self.pauses_left * (self.pause or 0.0)


class Bar:
    """The progress of one piece of work.

    Attributes:
        pace: its pace.
        figures: text below the bar.
    """

    def __init__(self, what: str, pace: Pace, count: str, say: Callable[[str], None] | None) -> None:
        self.pace, self.figures = pace, ""
        self._what, self._count, self._say = what, count, say
        self._line_due = time.monotonic() + FIRST_LINE
        self._row: TaskID | None = None

    def advance(self, items: int = 1, figures: str | None = None) -> None:
        """Count work done.

        Args:
            items: number of items.
            figures: text to show, separated by two spaces; None to leave what is there.
        """
        self.reach(self.pace.done + items, figures)

    def reach(self, done: int, figures: str | None = None) -> None:
        """Set the number of items done; see `advance`."""
        self.pace.reach(done)
        self.figures = self.figures if figures is None else figures
        if self._row is not None and _display is not None:
            _display.update(self._row, completed=done)
        elif self._say and time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + LINE_EVERY
            left = self.pace.left()
            parts = [f"{self._what}: {self.count()}", self.figures, f"{duration(left)} left" if left else ""]
            self._say("  ".join(filter(None, parts)))

    def count(self) -> str:
        """Items done and in all, as text."""
        return self._count.format(self.pace.done, self.pace.total)

    @contextmanager
    def shown(self) -> Iterator[Bar]:
        """Show the bar in a terminal: below those that are shown already."""
        if not (console.is_interactive or console.is_jupyter):
            yield self
            return
        global _display
        outermost, display = _display is None, _display or _Display()
        self._row = display.add_task(self._what, total=self.pace.total or None, completed=self.pace.done, bar=self)
        if outermost:
            _display = display
            display.start()
        try:
            yield self
        finally:
            display.remove_task(self._row)
            self._row = None
            if outermost:
                _display = None
                display.stop()


def say_on_stderr(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(
    what: str, total: int, count: str = "{:,} of {:,} images", *, say: Callable[[str], None] | None = say_on_stderr
) -> Iterator[Bar]:
    """Show the progress of a block, which calls `advance` of the bar that it is given.

    In a terminal a bar is shown until the block ends, within that of an outer block as another row. Elsewhere a line is
    said after three seconds, and every half minute from then on.

    Args:
        what: the work, in a few words.
        total: its number of items.
        count: format of the number of items done and in all.
        say: prints a line without a terminal; None for no lines.
    """
    with Bar(what, Pace(total), count, say).shown() as bar:
        yield bar


@contextmanager
def waiting(what: str, *, say: Callable[[str], None] = say_on_stderr) -> Iterator[None]:
    """Say what is waited for, once, if a block takes more than `SILENT` seconds.

    Args:
        what: the work that has no progress to show, such as a compilation.
        say: prints a line; called in another thread.
    """
    timer = threading.Timer(SILENT, say, [what])
    timer.daemon = True  # an error in the block ends the process at once
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.fields["bar"].count())


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields["bar"].pace.left()
        return Text("" if left is None else f"{duration(left)} left")


class _Display(Progress):
    """The bars of this process, and below them the outermost one's figures."""

    def __init__(self) -> None:
        whole = [Column(no_wrap=True) for _ in range(3)]  # in a narrow terminal the bar alone gets shorter
        columns = (
            TextColumn("{task.description}", markup=False, table_column=whole[0]), BarColumn(bar_width=None),
            _Count(whole[1]), _Left(whole[2]),
        )  # fmt: skip
        # rich sends redirected text to the bar's console: what is printed into a pipe must reach the pipe
        redirect = console.is_jupyter or sys.stdout.isatty()
        super().__init__(*columns, console=console, transient=True, redirect_stdout=redirect)

    def get_renderables(self) -> Iterable[RenderableType]:
        """See `rich.progress.Progress`."""
        yield self.make_tasks_table(self.tasks)
        figures = next((task.fields["bar"].figures for task in self.tasks), "")
        if figures:
            # flows into as many lines as the terminal's width needs
            yield Columns([Text(figure, no_wrap=True) for figure in figures.split("  ")], padding=(0, 2, 0, 0))


_display: _Display | None = None  # what is on the screen
