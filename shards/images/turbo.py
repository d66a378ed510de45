"""JPEGs decoded by libjpeg-turbo into NumPy's memory, without the copies that Pillow makes.

Pillow decodes by libjpeg-turbo, too, and with the same settings: the accurate transform, smooth chroma upsampling, and
the same factors by which large images are shrunk. So the pixels are the same.
"""

from __future__ import annotations

import simplejpeg
from numpy.typing import NDArray

from shards.images.jpeg import Header
from shards.images.memory import Memory

_SHRINKS = (8, 4, 2)  # factors of `PIL.JpegImagePlugin.JpegImageFile.draft`
_memory = Memory()


def decoded(data: bytes, header: Header, least: tuple[int, int]) -> NDArray | None:
    """The pixels of a JPEG, as of Pillow; at a lower resolution where it is at least `least`.

    Args:
        data: The JPEG.
        header: Its header.
        least: Width and height in pixels.

    Returns:
        uint8[H, W] of a grey JPEG, uint8[H, W, 3] of one in colour, valid until this thread's next call; None if Pillow
        is to decode it: it is CMYK, or of a rare kind, or has a fault, of which decoders forgive some.
    """
    if not header.plain:
        return None
    scale = min(header.width // least[0], header.height // least[1])
    shrink = next((factor for factor in _SHRINKS if scale >= factor), 1)
    width, height = (-(-side // shrink) for side in (header.width, header.height))
    room = _memory.room("pixels", width * height * header.components)
    colours = "GRAY" if header.components == 1 else "RGB"
    try:
        # takes the smallest of the scales 1/8, 2/8, 3/8, ... at which both sides reach these
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width, buffer=room)
    except ValueError:  # of any fault, even one without an effect on the pixels
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels[:, :, 0] if header.components == 1 else pixels
