"""Going back to the last sound checkpoint, and past the batches since, as for spikes of the loss in other trainings.

PaLM restarted from a checkpoint before a spike and skipped the batches around it (arXiv 2204.02311, section 5.1): the
same batches from other weights made no spike, nor did other batches from the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

WINDOW = 10_000
"""Steps within which --max-rollbacks are allowed. Each rollback skips what it repeats, so a run cannot go round in a
circle within one; and a month's run may meet a few bad batches here and there."""


@dataclass(frozen=True)
class Rollback:
    """One rollback, as the progress of a checkpoint and metrics.jsonl have it.

    Attributes:
        found: steps done when the fault was found.
        to: steps done in the checkpoint that the run went back to.
        position: batches of the data that were passed until then, counted from the start of the run; training goes on
            with the next one.
        cause: what was found.
    """

    found: int
    to: int
    position: int
    cause: str

    @property
    def undone(self) -> int:
        """Steps that were undone; as many batches are skipped."""
        return self.found - self.to

    def plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


def too_many(earlier: Sequence[Rollback], step: int, most: int) -> str | None:
    """Why a run that has done `step` steps may not go back once more, in words; None where it may."""
    near = [rollback for rollback in earlier if step - rollback.found < WINDOW]
    if len(near) < most:
        return None
    return f"{len(near)} rollbacks within {WINDOW:,} steps, to the steps {', '.join(str(each.to) for each in near)}"
