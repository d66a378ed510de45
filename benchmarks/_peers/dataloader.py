"""Contestants that are a torch DataLoader with worker processes.

They share these settings. One worker per core, because the main process only passes batches on; torch limits each
worker to one thread, so cores are not oversubscribed. Batches are collated in the workers and passed in shared memory.
The sampler draws permutation after permutation without end, so that no worker idles at the end of a short epoch; in
long epochs that would not matter.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from _peers.work import Batches, Work
from pipelines import ViewSpec

_ENDLESS = 1 << 40
_SHUFFLED = 1000  # encoded images in webdataset's shuffle buffer


class TwoViews:
    """Applies a random transform twice to the same image."""

    def __init__(self, view: Callable[[Any], torch.Tensor]) -> None:
        self.view = view

    def __call__(self, image: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key."""
        return self.view(image), self.view(image)


def endless(dataset: Dataset[Any]) -> RandomSampler:
    """Permutation after permutation of a data set with a length."""
    return RandomSampler(dataset, num_samples=_ENDLESS)  # pyright: ignore[reportArgumentType]


def batches(dataset: Dataset[Any], work: Work, start_worker: Callable[[int], None] | None = None) -> Batches:
    """Query and key of each batch of a data set whose samples begin with both views of an image."""
    streamed = isinstance(dataset, IterableDataset)
    sampler = None if streamed else endless(dataset)
    loader = DataLoader(
        # drop_last, because training uses whole batches only
        dataset, work.batch_size, sampler=sampler, num_workers=work.workers, drop_last=True,
        worker_init_fn=start_worker, prefetch_factor=4,
    )  # fmt: skip
    for batch in loader:
        query, key = batch[0]
        yield query, key


class PillowBlur:
    """Gaussian blur of a Pillow image by a random number of pixels."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, blurred."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


def pillow_view(spec: ViewSpec) -> transforms.Compose:
    """The original MoCo's torchvision transforms of a Pillow image, in its order."""
    jitter = transforms.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)
    return transforms.Compose([
        transforms.RandomResizedCrop(spec.image_size, spec.area, spec.ratio),
        transforms.RandomApply([jitter], spec.jitter),
        transforms.RandomGrayscale(spec.grey),
        transforms.RandomApply([PillowBlur(spec.sigma)], spec.blur),  # pyright: ignore[reportArgumentType]
        transforms.RandomHorizontalFlip(spec.flip),
        transforms.ToTensor(),
        transforms.Normalize(spec.mean, spec.std),
    ])  # fmt: skip


def original(work: Work) -> Batches:
    """The original MoCo's loader: ImageFolder, Pillow images, two crops of each."""
    yield from batches(ImageFolder(work.images, TwoViews(pillow_view(work.spec))), work)


def pixel_transforms(spec: ViewSpec) -> list[Any]:
    """Transforms v2 of torchvision for uint8[3, H, W], all but the normalisation."""
    # here, as `revisions.py` runs this file with the packages of earlier revisions, which had it elsewhere
    from pipelines.augmentation import blur_radius

    # the window of the widest blur: torchvision uses one size for all sigmas
    window = 2 * blur_radius(spec.sigma[1]) + 1
    return [
        v2.RandomResizedCrop(spec.image_size, spec.area, spec.ratio, antialias=True),
        v2.RandomApply([v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)], spec.jitter),
        v2.RandomGrayscale(spec.grey),
        v2.RandomApply([v2.GaussianBlur(window, spec.sigma)], spec.blur),
        v2.RandomHorizontalFlip(spec.flip),
    ]


def tensor_view(spec: ViewSpec) -> v2.Compose:
    """One view by torchvision's v2; floats come last, because the uint8 kernels are faster."""
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
    return v2.Compose([*pixel_transforms(spec), *normalise])


def decode_file(path: str) -> torch.Tensor:
    """uint8[3, H, W] of a JPEG file, by libjpeg-turbo."""
    image = decode_jpeg(read_file(path), ImageReadMode.RGB)
    assert isinstance(image, torch.Tensor)  # a list is returned only for a list
    return image


def torchvision_v2(work: Work) -> Batches:
    """The transforms v2 of torchvision on uint8 tensors."""
    yield from batches(ImageFolder(work.images, TwoViews(tensor_view(work.spec)), loader=decode_file), work)


def lightly(work: Work) -> Batches:
    """The MoCoV2Transform of lightly, whose defaults are the paper's."""
    from lightly.transforms import MoCoV2Transform

    yield from batches(ImageFolder(work.images, MoCoV2Transform(work.image_size)), work)


class AlbumentationsView:
    """One view of uint8[H, W, 3] by albumentations; `antialiased` if the crop is larger than the view."""

    def __init__(self, spec: ViewSpec, antialiased: bool) -> None:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2

        size = (spec.image_size, spec.image_size)
        self.compose = A.Compose([
            A.RandomResizedCrop(size, spec.area, spec.ratio, area_for_downscale="image" if antialiased else None),
            A.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue, p=spec.jitter),
            A.ToGray(p=spec.grey),
            A.GaussianBlur(blur_limit=0, sigma_limit=spec.sigma, p=spec.blur),  # 0: a window that suits sigma
            A.HorizontalFlip(p=spec.flip),
            A.Normalize(spec.mean, spec.std),
            ToTensorV2(),
        ])  # fmt: skip

    def __call__(self, image: Any) -> torch.Tensor:
        """float32[3, S, S]."""
        return self.compose(image=image)["image"]


def _read_by_opencv(path: str) -> Any:
    import cv2

    # no rotation by EXIF: packing has turned the images upright, and no other contestant looks at it
    return cv2.imread(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _start_albumentations(_: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # otherwise OpenCV starts its own threads in every worker
    worker: Any = get_worker_info()
    # otherwise every worker draws the same numbers, and again after a restart
    worker.dataset.transform.view.compose.set_random_seed(worker.seed % 2**32)


def albumentations(work: Work) -> Batches:
    """Albumentations with its defaults, on images decoded by OpenCV."""
    yield from _albumentations(work, antialiased=False)


def albumentations_area(work: Work) -> Batches:
    """The same with antialiasing in the resize, as in all other loaders."""
    yield from _albumentations(work, antialiased=True)


def _albumentations(work: Work, antialiased: bool) -> Batches:
    views = TwoViews(AlbumentationsView(work.spec, antialiased))
    yield from batches(ImageFolder(work.images, views, loader=_read_by_opencv), work, _start_albumentations)


class PillowSample:
    """Both views of a sample of a tar."""

    def __init__(self, spec: ViewSpec) -> None:
        self.views = TwoViews(pillow_view(spec))

    def __call__(self, sample: dict[str, Any]) -> tuple[tuple[torch.Tensor, torch.Tensor]]:
        """Query and key, in a tuple of one."""
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            return (self.views(image.convert("RGB")),)


def webdataset(work: Work) -> Batches:
    """The tars by webdataset, with the transforms of `original`, which are faster than those on tensors."""
    from webdataset.compat import WebDataset

    tars = sorted(str(path) for path in work.shards.glob("*.tar"))
    # resampled: each worker draws tars without end, so that none runs out of them
    dataset: Any = WebDataset(tars, resampled=True, shardshuffle=False).shuffle(_SHUFFLED)
    yield from batches(dataset.map(PillowSample(work.spec)), work)
