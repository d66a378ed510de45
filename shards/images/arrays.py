"""Arrays and tensors as images: what their values and dimensions mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from shards.images.causes import Rejected
from shards.images.convert import inverted, to_8_bits, turned, widened
from shards.images.deep import WHITE
from shards.images.deep import upright as upright_16

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def from_array(array: np.ndarray) -> Image.Image:
    """8-bit RGB or grey of an array; transparent pixels are blended with white.

    Args:
        array: [H, W] or [H, W, C] with 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 channels (RGBA); uint8; uint16, which
            is scaled by its full range, value / 257; or bool, where True is white.

    Raises:
        ValueError: The values or the shape mean no image; the message says how to convert them.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in _MODES:
        remedy = "give [height, width] or [height, width, 1 to 4 channels]"
        if array.ndim == 3 and array.shape[0] in _MODES:
            remedy = "channels come last: give array.transpose(1, 2, 0)"
        raise ValueError(f"an array of the shape {list(array.shape)} is no image; {remedy}")
    mode = _MODES[array.shape[2]]
    values = np.ascontiguousarray(_bytes(array))
    return to_8_bits(Image.frombytes(mode, (array.shape[1], array.shape[0]), values.tobytes()))


def pixels_16(given: Any) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3] of an image in memory: a PIL image, an array or a tensor.

    As of a file, the EXIF orientation of a PIL image is applied, its transparent pixels are white, and a TIFF's values
    of which 0 is white are inverted.

    Raises:
        Rejected: Its values are not of 16 bits.
        ValueError: The shape means no image of grey or RGB; the message says how to convert it.
    """
    if isinstance(given, Image.Image):
        if not given.mode.startswith("I;16"):
            raise Rejected(f"not 16 bits: an image of mode {given.mode}")
        if widened(given) is not given:
            raise Rejected("not 16 bits: a TIFF of 12")
        pixels, key = np.asarray(given).astype(np.uint16), given.info.get("transparency")  # in the machine's byte order
        if key is not None:
            pixels[pixels == key] = WHITE
        if inverted(given):
            pixels = WHITE - pixels
        return np.ascontiguousarray(upright_16(pixels, turned(given)))
    is_tensor = hasattr(given, "detach")
    kind = str(given.dtype).removeprefix("torch.") if is_tensor else given.dtype.newbyteorder("=").name
    if kind != "uint16":
        raise Rejected(f"not 16 bits: values of the type {kind}")
    array = np.asarray(given.detach().cpu() if is_tensor else given).astype(np.uint16)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise ValueError(
            f"{list(given.shape)} is no shape of a 16-bit image; give "
            + ("[1 or 3, height, width]" if is_tensor else "[height, width] or [height, width, 1 or 3]")
        )
    return np.ascontiguousarray(array)


def from_tensor(tensor: Any) -> Image.Image:
    """As `from_array`, of a torch tensor [H, W] or [C, H, W]. Imports no torch.

    Raises:
        ValueError: As of `from_array`.
    """
    if tensor.is_floating_point():  # before numpy, which has no bfloat16
        raise _no_values(str(tensor.dtype).removeprefix("torch."), "tensor")
    array = tensor.detach().cpu().numpy()
    if array.ndim == 3:
        if array.shape[0] not in _MODES:
            raise ValueError(
                f"a tensor of the shape {list(array.shape)} is no image; channels come first: "
                + ("give tensor.permute(2, 0, 1)" if array.shape[2] in _MODES else "give [1 to 4, height, width]")
            )
        array = array.transpose(1, 2, 0)
    return from_array(array)


def _bytes(array: np.ndarray) -> np.ndarray:
    """uint8 of the values."""
    kind = array.dtype
    if kind == np.uint8:
        return array
    if kind == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if kind.kind == "u" and kind.itemsize == 2:
        # rounded: 257 is odd, so there are no ties
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise _no_values(str(kind), "array")


def _no_values(kind: str, what: str) -> ValueError:
    if kind.startswith(("float", "bfloat")):
        # not guessed from the values: 0 to 1, 0 to 255 and normalised values overlap
        convert = ".round().to(torch.uint8)" if what == "tensor" else '.round().astype("uint8")'
        remedy = (
            f"for values from 0 to 1 give (255 * {what}){convert}; of a data set, leave out its ToTensor or Normalize"
        )
    else:
        remedy = "give uint8 (0 to 255), uint16 (0 to 65535) or bool"
    return ValueError(f"values of the type {kind} do not say what is white; {remedy}")
