from __future__ import annotations

import io
import sys
import threading

import pytest
from rich.console import Console

from shards import progress as module
from shards.progress import Bar, Pace, progress, waiting
from shards.words import counted, duration


class Clock:
    """Time that passes only when a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_durations_in_words():
    spans = {0.4: "0 s", 59.4: "59 s", 59.6: "1 min 00 s", 185: "3 min 05 s", 3599.6: "1 h 00 min", 7530: "2 h 06 min"}
    assert {seconds: duration(seconds) for seconds in spans} == spans
    assert [duration(86_400 * days) for days in (1.5, 3.1, 40)] == ["36 h 00 min", "3.1 days", "40.0 days"]


def test_the_pace_leaves_out_slow_first_items_and_pauses_and_counts_pauses_to_come(clock):
    pace = Pace(total=100, done=10, warm_up=3, pause_every=20)
    for done in range(11, 14):
        clock.now += 50  # compiling
        pace.reach(done)
        assert pace.left() is None
    for done in range(14, 21):
        clock.now += 2
        pace.reach(done)
    assert pace.each() == 2 and pace.left() == 80 * 2 and pace.pauses_left == 5
    with pytest.raises(KeyError), pace.paused():  # an evaluation may fail
        clock.now += 7
        raise KeyError
    assert pace.each() == 2 and pace.pause == 7
    assert pace.left() == 80 * 2 + 4 * 7  # after 40, 60, 80 and 100
    clock.now += 5
    assert pace.left() == 80 * 2 - 5 + 4 * 7  # counts down while an item takes its time
    pace = Pace(total=100, done=10, work=lambda items: items if items < 50 else 50 + 4 * (items - 50))
    for done in range(11, 15):
        clock.now += 2
        pace.reach(done)
    assert pace.each() == 2 and pace.left() == (36 + 4 * 50) * 2  # later items take four times as long
    pace = Pace(total=10, pause_every=6)
    left = []
    for done in range(1, 11):
        pace.reach(done)
        left.append(pace.pauses_left)
        if done in (6, 10):
            with pace.paused():
                left.append(pace.pauses_left)
    assert left == [2] * 6 + [2, 1, 1, 1, 1, 1] and pace.pauses_left == 0


def test_without_a_terminal_short_work_is_silent_and_long_work_says_a_line_each_half_minute(clock):
    said = []
    with progress("features", 1000, say=said.append) as bar:
        clock.now += 2
        bar.advance(100)
        assert said == []
        for _ in range(7):
            clock.now += 10
            bar.advance(100)
    assert said == ["features: 200 of 1,000 images  1 min 20 s left", "features: 500 of 1,000 images  50 s left",
                    "features: 800 of 1,000 images  20 s left"]  # fmt: skip


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 120])
def test_at_80_columns_count_and_time_left_are_visible_and_figures_have_lines_of_their_own(clock, monkeypatch, width):
    monkeypatch.setattr(module, "console", Console(file=Screen(), force_terminal=True, width=width))
    pace = Pace(1_001_000)
    figures = "loss 6.9312  accuracy 10.0 %  lr 0.01200  1,200 images/s  data wait 10 %  queue 100 %  spread 0.98"
    with Bar("train", pace, "step {:,} of {:,}", None).shown() as bar:
        for done in (123_456, 123_457):
            clock.now += 0.3
            bar.reach(done, figures)
        with progress("features of val", 1_281_167) as inner:
            for done in (700_000, 800_000):
                clock.now += 1
                inner.reach(done)
            page = Console(file=io.StringIO(), width=width)
            page.print(module._display.get_renderable())
    lines = [line.rstrip() for line in page.file.getvalue().splitlines()]
    train, features, *below = lines
    assert train.startswith("train ") and "step 123,457 of 1,001,000" in train and train.endswith("3.0 days left")
    assert features.endswith("800,000 of 1,281,167 images 5 s left") and all("━" in line for line in (train, features))
    assert " ".join(below).split() == figures.split()
    assert all(figure in "\n".join(below) for figure in figures.split("  "))  # none is broken in two
    assert all(len(line) <= width for line in lines)


def test_a_wait_is_explained_if_it_is_long_and_only_then(monkeypatch):
    said, long = [], threading.Event()
    monkeypatch.setattr(module, "SILENT", 3600.0)
    with waiting("quick", say=said.append):
        pass
    monkeypatch.setattr(module, "SILENT", 0.0)
    with waiting("compiling", say=lambda text: (said.append(text), long.set())):
        assert long.wait(60)
    assert said == ["compiling"]


def test_what_is_printed_into_a_pipe_stays_in_the_pipe(monkeypatch):
    """stderr is a terminal, stdout is not: rich would send redirected output to the bar's terminal."""
    monkeypatch.setattr(module, "console", Console(file=Screen(), force_terminal=True, width=80))
    monkeypatch.setattr(sys, "stdout", pipe := io.StringIO())
    with progress("verify", 3) as bar:
        print("a problem")
        bar.advance()
    assert pipe.getvalue() == "a problem\n"


def test_nouns_are_counted_in_their_plural():
    assert [counted(n, noun) for n, noun in ((1, "class"), (2, "class"), (1, "image"), (2000, "image"))] == [
        "1 class", "2 classes", "1 image", "2,000 images",
    ]  # fmt: skip
