from __future__ import annotations

from dataclasses import replace

import pytest

from fastmoco.recipes import recipe
from fastmoco.trainer.schedule import lr_at, peak_lr


def test_moco_v1_drops_at_epochs_120_and_160():
    config, spe = recipe("moco-v1"), 5004
    total = config.total_steps(spe)
    rates = [lr_at(config, epoch * spe, total) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert lr_at(config, 120 * spe - 1, total) == 0.03


def test_ig1b_decays_every_62500_iterations():
    config = recipe("moco-v1-ig1b")
    total = config.total_steps(1_000_000)
    assert total == 1_250_000
    rates = [lr_at(config, s, total) for s in (0, 62_499, 62_500, 125_000)]
    assert rates == pytest.approx([0.12, 0.12, 0.108, 0.0972])


def test_moco_v2_is_a_cosine():
    config = recipe("moco-v2")
    assert [lr_at(config, s, 100) for s in (0, 50, 100)] == pytest.approx([0.03, 0.015, 0.0])


@pytest.mark.parametrize("name", ["moco-v1", "moco-v2"])
def test_warm_up_rises_by_equal_steps_to_the_schedule(name):
    config = replace(recipe(name), warmup=0.1)
    without = [lr_at(replace(config, warmup=0.0), step, 100) for step in range(100)]
    rates = [lr_at(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([rate * (step + 1) / 10 for step, rate in enumerate(without[:10])])
    assert rates[9:] == without[9:] and rates[0] == pytest.approx(0.003)


def test_lr_is_as_given_or_scaled_with_the_batch():
    config = recipe("moco-v2")
    assert peak_lr(replace(config, batch_size=1024)) == pytest.approx(0.12)
    assert peak_lr(replace(config, batch_size=1024, lr=0.06)) == 0.06
    assert replace(config, batch_size=1024).base_lr == 0.03
