from __future__ import annotations

from dataclasses import replace

import pytest

from fastmoco.flags import ConfigError, as_fractions
from fastmoco.probes.linear_settings import LinearSettings
from fastmoco.recipes import recipe
from fastmoco.train import parse
from fastmoco.trainer.schedule import in_words, lr_at, peak_lr


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


def test_milestones_above_1_are_epochs_as_in_the_original():
    config = parse(["--recipe", "moco-v1", "--milestones", "120", "160"])
    assert config.milestones == (120, 160)  # recorded as given
    spe, total = 5004, 200 * 5004
    rates = [lr_at(config, epoch * spe, total) for epoch in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert lr_at(config, 120 * spe - 1, total) == 0.03 and lr_at(config, 160 * spe - 1, total) == pytest.approx(0.003)
    said = "learning rate 0.03, × 0.1 at epochs 120 and 160 of 200 (steps 600480 and 800640)"
    assert in_words(config, spe, total) == said == in_words(recipe("moco-v1"), spe, total)


def test_the_log_says_every_schedule():
    config = replace(recipe("moco-v2"), warmup=0.1)
    assert (
        in_words(config, 10, 100)
        == "learning rate 0.03 after a warm-up of 10 steps, along half a cosine to 0 at step 100"
    )
    assert "a warm-up of 1 step," in in_words(config, 10, 10)
    assert in_words(recipe("moco-v1-ig1b"), 10, 100) == "learning rate 0.12, × 0.9 every 62500 steps"
    assert in_words(replace(recipe("moco-v1"), milestones=()), 10, 100) == "learning rate 0.03, constant"


def test_epochs_of_any_length_of_run_are_exact():
    for epochs in range(2, 1001):
        for spe in (1, 7, 5004):
            fractions = as_fractions((1.5, epochs - 1.0), epochs) if epochs > 2 else as_fractions((1.5,), 2)
            assert round(fractions[-1] * epochs * spe) == ((epochs - 1) * spe if epochs > 2 else round(1.5 * spe))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--milestones 120 160 --epochs 100", "--milestones 120 160: epoch 120 is not within --epochs 100"),
        ("--milestones 0.5 160", "--milestones 0.5 160 has fractions of the run, which are below 1, and epochs"),
        ("--milestones 120 160 --steps 5000", "are epochs, but the length is given by --steps; give fractions"),
        ("--milestones 1", "1 is the end of the run as a fraction; for epoch 1 give 1 / --epochs"),
        ("--milestones -0.5", "-0.5 is neither a fraction of the run nor an epoch"),
        ("--milestones nan", "nan is neither a fraction of the run nor an epoch"),
        ("--warmup 10", "--warmup is 10.0; it is a fraction of the run: for 10 of 200 epochs give 0.05"),
        ("--decay 10", "--decay is 10.0; it must be in 0..1"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_with_the_right_one(arguments, message):
    with pytest.raises(ConfigError) as error:
        parse(["--recipe", "moco-v1", *arguments.split()])
    assert message in str(error.value)


def test_a_recorded_run_that_took_epochs_for_fractions_can_still_be_read():
    config = replace(recipe("moco-v1"), milestones=(120, 160), steps=5000)
    assert type(config).from_dict(config.to_dict()) == config


def test_the_linear_probes_milestones_are_epochs_above_1():
    def probe(*milestones):
        return LinearSettings("x.pt", "a", "b", milestones=milestones)

    assert [probe(60, 80).factor(epoch) for epoch in (0, 59, 60, 79, 80)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert probe(60, 80).deciding() == probe(0.6, 0.8).deciding()  # a run is continued however they are spelt
    with pytest.raises(ConfigError, match="epoch 120 is not within --epochs 100"):
        probe(120, 160)
