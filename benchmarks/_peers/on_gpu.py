"""What a user with a GPU would choose instead: DALI's own reader and operators, or torchvision behind nvJPEG.

Both also run on a CPU, by DALI's CPU operators and on CPU tensors: so their tests need no GPU. Not yet run on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from _peers.dataloader import endless, pixel_transforms
from _peers.work import Batches, Work


def dali_reader(work: Work) -> Batches:
    """DALI's WebDataset reader, and MoCo's augmentation by DALI's operators with its own random numbers."""
    from _peers.dali_graph import batches  # here, because DALI may not be installed

    yield from batches(work)


class _Files(Dataset[torch.Tensor]):
    """The bytes of the JPEG files."""

    def __init__(self, work: Work) -> None:
        self._paths = sorted(map(str, work.images.rglob("*.jpg")))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        """uint8[bytes]."""
        return read_file(self._paths[number])


def _joined(files: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    # in one tensor, because each tensor costs a file handle between processes
    return torch.cat(files), [len(data) for data in files]


def torchvision_nvjpeg(work: Work) -> Batches:
    """Files read by a DataLoader's workers, decoded in batches by nvJPEG; transforms v2 on the device.

    A transform draws its numbers once for all images that it gets, so it is applied to each image by itself.
    """
    transform = v2.Compose(pixel_transforms(work.spec))
    finish = v2.Compose([v2.ToDtype(work.dtype, scale=True), v2.Normalize(work.spec.mean, work.spec.std)])
    files = _Files(work)
    loader: DataLoader[Any] = DataLoader(
        files, work.batch_size, sampler=endless(files), num_workers=work.workers, drop_last=True, collate_fn=_joined,
        prefetch_factor=4,
    )  # fmt: skip
    for data, lengths in loader:
        images = decode_jpeg(list(data.split(lengths)), ImageReadMode.RGB, device=work.device)
        query, key = (finish(torch.stack([transform(image) for image in images])) for _ in range(2))
        yield query, key
