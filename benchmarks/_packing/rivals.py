"""The contestants of `packing.py`: other writers of tars, decoders, a Pillow pool; and verification.

Each does the complete work, from the images' paths to the finished tars.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import multiprocessing
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from multiprocessing.pool import Pool
from pathlib import Path

from PIL import Image
from simplejpeg import decode_jpeg

# the default of fastmoco pack, for ShardWriter as well
SHARD_SIZE = 2000
_CHUNK = 64  # files per task of a pool's process


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Pool]:
    """A pool of forked processes, which has ended when the block has."""
    # Without this command's handler of signals: its exception could come while a process holds the lock of the pool's
    # queue, for which all others would then wait for ever.
    with multiprocessing.get_context("fork").Pool(workers, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
        yield pool
        pool.close()
        pool.join()


def _decode_files(paths: Sequence[str]) -> None:
    for path in paths:
        decode_jpeg(Path(path).read_bytes())


def decode_only(paths: Sequence[str], workers: int) -> None:
    """Read and decode every image in a pool of processes, and discard the pixels."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with _processes(workers) as pool:
        pool.map(_decode_files, chunks, chunksize=1)


def gnu_tar(paths: Sequence[str], out: Path, synced: bool) -> None:
    """Write all files by one GNU tar; `synced` to the disk, as the packer's tars are."""
    names = out.with_name("names.txt")
    names.write_text("\n".join(paths) + "\n", encoding="utf-8")
    # without --dereference tar stores the links; without --hard-dereference it stores a photograph that was linked
    # before as a hard link, which takes no time
    subprocess.run(["tar", "--dereference", "--hard-dereference", "-cPf", out / "all.tar", "-T", names], check=True)
    if synced:
        with open(out / "all.tar", "rb") as file:
            os.fsync(file.fileno())


def shard_writer(paths: Sequence[str], out: Path) -> None:
    """The ShardWriter of webdataset: the bytes and a label of each file, in one process, its only mode."""
    from webdataset.writer import ShardWriter

    with ShardWriter(f"{out}/shard-%06d.tar", maxcount=SHARD_SIZE, verbose=0) as writer:
        for number, path in enumerate(paths):
            # the label, too, which packing writes from the class folder
            writer.write({"__key__": f"{number:012d}", "jpg": Path(path).read_bytes(), "cls": str(number % 10)})


def ffcv_writer(paths: Sequence[str], out: Path, workers: int) -> None:
    """FFCV's DatasetWriter, storing JPEGs unchanged; raises ImportError if FFCV is not installed."""
    from ffcv.fields import IntField, RGBImageField  # pyright: ignore[reportMissingImports]
    from ffcv.writer import DatasetWriter  # pyright: ignore[reportMissingImports]

    writer = DatasetWriter(
        out / "all.beton", {"image": RGBImageField(write_mode="jpg"), "label": IntField()}, num_workers=workers
    )
    writer.from_indexed_dataset(_Images(paths))


class _Images:
    """Decoded image and label by number, the interface that FFCV requires."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return Image.open(self._paths[number]).convert("RGB"), number % 10


def resized_by_pillow(data: bytes, short_side: int, quality: int, scaled: bool) -> bytes:
    """An image resized by Pillow (Lanczos) to `short_side`; `scaled` decodes at reduced size, at least twice that."""
    with Image.open(io.BytesIO(data)) as image:
        factor = short_side / min(image.size)
        size = round(image.width * factor), round(image.height * factor)
        if scaled:
            # at least twice the size, as fastmoco: the resize still filters, and the PSNR is the same
            image.draft("RGB", (2 * size[0], 2 * size[1]))
        pixels = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _resize_files(work: tuple[Sequence[str], Path, int, int, bool]) -> None:
    paths, tar_path, short_side, quality, scaled = work
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, path in enumerate(paths):
            jpeg = resized_by_pillow(Path(path).read_bytes(), short_side, quality, scaled)
            member = tarfile.TarInfo(f"{number:012d}.jpg")
            member.size = len(jpeg)
            tar.addfile(member, io.BytesIO(jpeg))


def pillow_pool(paths: Sequence[str], out: Path, workers: int, short_side: int, quality: int, scaled: bool) -> None:
    """A pool of processes that resize with Pillow; each writes its own tars, so no pixels pass between processes."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    work = [(chunk, out / f"{i:06d}.tar", short_side, quality, scaled) for i, chunk in enumerate(chunks)]
    with _processes(workers) as pool:
        pool.map(_resize_files, work, chunksize=1)


def verified(folder: Path, workers: int, decode: bool) -> None:
    """`fastmoco verify` of a packed set; raises RuntimeError where it finds damage."""
    from shards import ShardSet
    from shards.verify import verify

    with ShardSet(folder) as shard_set:
        problems = [problem for found in verify(shard_set, workers, decode) for problem in found]
    if problems:
        raise RuntimeError(f"the set that was just packed is damaged: {problems[0]}")


def has_ffcv() -> bool:
    """Whether FFCV is installed."""
    return importlib.util.find_spec("ffcv") is not None
