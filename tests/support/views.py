"""Comparing batches of views."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines import TwoViews


def assert_same_views(ours: Sequence[TwoViews], theirs: Sequence[TwoViews]) -> None:
    """Fail unless the batches have the same ids and, bit for bit, the same views."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.query, b.query)
        assert torch.equal(a.key, b.key)
