"""The counter-based generator: the published numbers, uniformity, independence."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines._random import philox, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, expected):
    words = philox(tuple(np.array([word]) for word in counter), key[0] | key[1] << 32)
    assert tuple(words[0].tolist()) == expected


def test_a_number_depends_on_its_place_alone():
    ids = np.arange(1000)
    whole = uniforms(ids, seed=3, epoch=2, stream=1, count=30)
    np.testing.assert_array_equal(uniforms(ids[[7, 500]], seed=3, epoch=2, stream=1, count=30), whole[[7, 500]])
    np.testing.assert_array_equal(uniforms(ids, seed=3, epoch=2, stream=1, count=5), whole[:, :5])


def test_numbers_are_uniform():
    values = uniforms(np.arange(20_000), seed=0, epoch=0, stream=0, count=8)
    assert values.min() > 0
    assert values.max() < 1
    for column in values.T:
        counts = np.histogram(column, bins=100, range=(0, 1))[0]
        # chi-square with 99 degrees of freedom exceeds 165 once in 40,000
        assert ((counts - 200) ** 2 / 200).sum() < 165


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 1 << 40},
        {"epoch": 1},
        {"stream": 1},
    ],
)
def test_seeds_epochs_and_streams_are_independent(other):
    ids = np.arange(20_000)
    place = {"seed": 0, "epoch": 0, "stream": 0}
    a = uniforms(ids, **place, count=4)
    b = uniforms(ids, **{**place, **other}, count=4)
    correlation = np.corrcoef(a.T, b.T)[:4, 4:]
    # the standard error is 0.007; five of them, for 16 correlations
    assert np.abs(correlation).max() < 0.035


def test_neighbouring_ids_and_numbers_are_independent():
    values = uniforms(np.arange(20_001), seed=0, epoch=0, stream=0, count=8)
    along_ids = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in values.T]
    across = np.corrcoef(values.T) - np.eye(8)
    assert np.abs(along_ids).max() < 0.035
    assert np.abs(across).max() < 0.035
