"""Batches from WebDataset tars that are read forwards only: no index, no random access.

Each epoch assigns the tars to the ranks in a new order. A rank reads four of its tars at once, takes an image from each
in turn, and draws its batches from a buffer of images. All of this follows from (seed, epoch, rank, world size) and the
tars' contents, so a rerun makes the same batches; but a start within an epoch reads the epoch from its beginning.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count, islice

import numpy as np

from pipelines._feed import Pending
from pipelines._samples import Batch, Known, Replacement
from pipelines._threads import spread
from pipelines.augmentation import ViewPair
from pipelines.draws import draw
from pipelines.errors import PipelineError
from pipelines.order.stream import PLACE_BITS, TAR_BITS, Image, TarOrder, mixed
from shards.foreign.streaming import give_up
from shards.images.encode import Encoded, Rejected, encode
from shards.images.options import EncodeOptions

_AS_THEY_ARE = EncodeOptions(check=False)  # the backend finds what cannot be decoded


@dataclass(frozen=True)
class _Place:
    """The images of a batch, and those of the next one, which replace bad ones."""

    epoch: int
    step: int
    images: list[Image]
    coming: list[Image]


@dataclass
class _Slots:
    """The places of a batch while its bad images are being replaced."""

    images: list[Image]
    encoded: dict[int, Encoded]  # by place: a bad image has none
    others: list[Iterator[tuple[Image, Encoded]]]  # at each place, the images to try in place of a bad one
    replaced: dict[int, Replacement] = field(default_factory=dict)


@dataclass
class _Pending(Pending):
    slots: _Slots


class StreamFeed:
    """The `pipelines._feed.Feed` of a stream.

    Args:
        tar_order: assigns the tars.
        pair: the augmentation of both views.
        pool: threads that check and convert images.
        undecodable: as of `pipelines._samples.Samples`.
        batch: size of this rank's batch.
        steps: steps of an epoch.
        buffer: images that the next one is drawn from.
    """

    order = "stream"

    def __init__(
        self,
        tar_order: TarOrder,
        pair: ViewPair,
        pool: ThreadPoolExecutor,
        undecodable: Known,
        *,
        batch: int,
        steps: int,
        buffer: int,
    ) -> None:
        self.steps, self.rank = steps, tar_order.rank
        self._tar_order, self._pair, self._pool, self._undecodable = tar_order, pair, pool, undecodable
        self._batch, self._buffer = batch, buffer

    def places(self, epoch: int, step: int) -> Generator[_Place, None, None]:
        """See `pipelines._feed.Feed.places`; batches before the first step are read as well, and dropped."""
        for number in count(epoch):
            with closing(mixed(self._tar_order, number, self._buffer)) as stream:
                coming = list(islice(stream, self._batch))
                for at in range(self.steps):
                    taken, coming = coming, list(islice(stream, self._batch))
                    if number > epoch or at >= step:
                        yield _Place(number, at, taken, coming)

    def read(self, place: _Place) -> _Pending:
        """See `pipelines._feed.Feed.read`."""
        images = list(place.images)
        found = dict(enumerate(spread(self._pool, lambda slot: self._checked(images[slot]), len(images))))
        causes = {slot: cause for slot, cause in found.items() if isinstance(cause, str)}
        slots = _Slots(
            images,
            {slot: image for slot, image in found.items() if isinstance(image, Encoded)},
            [self._others(place, slot) for slot in range(len(images))],
        )
        return _Pending(place.epoch, place.step, self._filled(place.epoch, slots, causes), slots)

    def replace(self, read: _Pending, causes: Mapping[int, str]) -> None:
        """See `pipelines._feed.Feed.replace`.

        A bad image is replaced by the one at the same place of the next batch, or by that one's neighbours.

        Raises:
            PipelineError: all of these are bad as well.
        """
        self._undecodable.learn({read.slots.images[slot].id: cause for slot, cause in causes.items()})
        read.batch = self._filled(read.epoch, read.slots, causes)

    def give_up(self) -> None:
        """See `pipelines._feed.Feed.give_up`."""
        give_up(self._tar_order.tars)

    def _filled(self, epoch: int, slots: _Slots, causes: Mapping[int, str]) -> Batch:
        """The batch after replacing its bad images."""
        for slot, cause in causes.items():
            first = slots.replaced.get(slot) or self._replacement(slots.images[slot], cause)
            slots.images[slot], slots.encoded[slot] = next(slots.others[slot])
            slots.replaced[slot] = replace(first, by=slots.images[slot].id)
        encoded = [slots.encoded[slot] for slot in range(len(slots.images))]
        ids = np.array([image.id for image in slots.images], dtype=np.int64)
        # the pass over the tars goes into the bits above the id, so that an image that repeats gets other views
        passes = np.array([image.passes for image in slots.images], dtype=np.int64) % (1 << 63 - PLACE_BITS - TAR_BITS)
        drawn_for = ids + (passes << PLACE_BITS + TAR_BITS)
        sizes = np.array([(image.height, image.width) for image in encoded], dtype=np.int32)
        query, key = (
            draw(spec, seed=self._tar_order.seed, epoch=epoch, ids=drawn_for, sizes=sizes, view=view)
            for view, spec in enumerate(self._pair)
        )
        return Batch(ids, [image.data for image in encoded], sizes, (query, key), replaced=dict(slots.replaced))

    def _others(self, place: _Place, slot: int) -> Iterator[tuple[Image, Encoded]]:
        # from the next batch alone: a stream cannot be read at random, and these images are in memory already
        for turn in range(len(place.coming)):
            image = place.coming[(slot + turn) % len(place.coming)]
            encoded = self._checked(image)
            if isinstance(encoded, Encoded):
                yield image, encoded
        bad = self._replacement(place.images[slot], "")
        raise PipelineError(
            f"{bad.shard}, key {bad.key}, is bad, and so are the {len(place.coming)} images tried in its place: "
            "remove that tar from the list"
        )

    def _replacement(self, image: Image, cause: str) -> Replacement:
        return Replacement(image.id, self._tar_order.tars[image.id >> PLACE_BITS], image.key, cause, -1)

    def _checked(self, image: Image) -> Encoded | str:
        """The image as an upright JPEG, or why it cannot be used."""
        if image.id in self._undecodable:
            return self._undecodable[image.id]
        try:
            return encode(image.data, _AS_THEY_ARE)
        except Rejected as rejected:
            return f"cannot be used: {rejected}"
