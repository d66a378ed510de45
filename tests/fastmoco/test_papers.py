from __future__ import annotations

import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "papers.py"


def test_twenty_steps_of_each_mechanism_equal_the_papers_pseudo_code(command):
    assert command(sys.executable, SCRIPT, "queue", "end-to-end", "memory-bank", "queue/4").stdout.strip() == "ok"


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "more"), [(2, ["memory-bank"]), pytest.param(4, [], marks=pytest.mark.long)])
def test_twenty_steps_on_several_ranks_equal_the_papers_pseudo_code(torchrun, ranks, more):
    assert torchrun(ranks, SCRIPT, "queue", "queue/2", "end-to-end", *more).stdout.strip() == "ok"
