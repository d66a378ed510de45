"""Classes in a batch are mixed as by random sampling, although the source is sorted by class."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelines import EpochOrder, ShardedOrder
from shards import PackOptions, ShardSet, pack

CLASSES, BATCH, WORLD = 8, 96, 4


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """2,400 images in 24 shards, packed from folders of 8 classes."""
    folder = tmp_path_factory.mktemp("mixing")
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(file, "JPEG")
    for label in range(CLASSES):
        (folder / "images" / f"{label}").mkdir(parents=True)
        for number in range(300):
            (folder / "images" / f"{label}" / f"{number:03d}.jpg").write_bytes(file.getvalue())
    pack(PackOptions(src=folder / "images", out=folder / "set", workers=1, shard_size=100), progress=False)
    with ShardSet(folder / "set") as shards:
        yield shards


def _orders(shards, policy, world, epoch):
    place = [(len(shards), BATCH, rank, world, 0, epoch) for rank in range(world)]
    if policy == "global":
        return [EpochOrder(*one) for one in place]
    return [ShardedOrder(*one, ends=shards.ends, lanes=8, window=150) for one in place]


def _chi_square(labels):
    """Chi-square of the classes (int64[rows, batch]) against equal shares in every row, in standard deviations.

    Rows that share out the images at random have a mean of the degrees of freedom and twice that as variance.
    """
    counts = np.array([np.bincount(row, minlength=CLASSES) for row in labels])
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    freedom = (len(labels) - 1) * (CLASSES - 1)
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("policy", ["global", "sharded"])
@pytest.mark.parametrize("world", [1, WORLD])
def test_a_batch_of_a_packed_set_has_the_classes_of_a_random_sample(packed, policy, world):
    """Of all ranks together, and of each rank, whose BatchNorm sees its part alone."""
    for epoch in range(3):
        orders = _orders(packed, policy, world, epoch)
        ids = np.array([order.ids(step) for step in range(orders[0].steps) for order in orders])
        labels = packed.labels(ids.ravel()).reshape(ids.shape)
        assert abs(_chi_square(labels)) < 4  # two-sided: neither clustered nor too even


def test_the_test_tells_other_samples_from_random_ones(packed):
    """The statistic detects order by class, and classes that are more even than by chance."""
    labels = np.sort(packed.labels(np.arange(len(packed))))
    assert _chi_square(labels.reshape(-1, BATCH)) > 100
    assert _chi_square(labels.reshape(-1, len(labels) // BATCH).T) < -9


def test_shards_that_are_sorted_by_class_are_mixed_less_by_sharded(packed):
    """As in tars of other programs: more lanes and a larger window mix better."""
    labels = np.sort(packed.labels(np.arange(len(packed))))

    def clustered(**shape):
        order = ShardedOrder(len(packed), BATCH, ends=packed.ends, **shape)
        return _chi_square(labels[np.array([order.ids(step) for step in range(order.steps)])])

    one_shard = clustered(lanes=1, window=100)
    assert one_shard > 2 * clustered(lanes=1, window=600) > 20
    assert one_shard > 2 * clustered(lanes=8, window=100) > 20
