from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastmoco.model.shuffle_bn import permutation

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_images_travel_and_features_come_back_in_order(torchrun, ranks):
    assert torchrun(ranks, SCRIPTS / "shuffle.py").stdout.strip() == "ok"


def counts(order, groups):
    """How many images each group of queries [row] sends to each group of keys [column]."""
    size = len(order) // groups
    sender, receiver = order // size, torch.arange(len(order)) // size
    return torch.bincount(sender * groups + receiver, minlength=groups**2).view(groups, groups)


@pytest.mark.parametrize(("count", "groups"), [(50, 1), (8, 2), (256, 8), (48, 4), (36, 6), (60, 5), (24, 8), (64, 64)])
def test_a_group_gets_equally_many_images_of_every_group_at_every_step(count, groups):
    drawn = [permutation(3, step, count, groups) for step in range(20)]
    assert all(sorted(order.tolist()) == list(range(count)) for order in drawn)
    sent = counts(drawn[0], groups)
    assert all(torch.equal(counts(order, groups), sent) for order in drawn)
    few, more = divmod(count // groups, groups)
    assert set(sent.flatten().tolist()) <= {few, few + (more > 0)}
    assert set(sent.diagonal().tolist()) == {few}  # of its own images it gets no more than of others
    assert torch.equal(sent.sum(0), sent.sum(1))


def test_a_permutation_depends_on_seed_and_step_alone():
    assert torch.equal(permutation(1, 2, 48, 4), permutation(1, 2, 48, 4))
    assert not torch.equal(permutation(1, 2, 48, 4), permutation(1, 3, 48, 4))
    assert not torch.equal(permutation(1, 2, 48, 4), permutation(2, 2, 48, 4))


def test_all_choices_of_images_are_equally_frequent():
    """Two groups of four: six choices of the two images that leave a group, independent of the other group's."""
    steps = 3600
    drawn = torch.stack([permutation(5, step, 8, 2) for step in range(steps)])
    of_first, of_second = drawn[:, 4:6].sort().values, drawn[:, 2:4].sort().values
    places = torch.cat([of_first, of_second - 4], 1) @ torch.tensor([64, 16, 4, 1])
    seen = torch.bincount(places)
    seen = seen[seen > 0]
    # 36 outcomes of 100 each: chi-squared with 35 degrees of freedom is below 66.6 with a probability of 99.9 %
    assert len(seen) == 36 and ((seen - 100) ** 2 / 100).sum() < 66.6
