"""Image formats by file extension, by decoder and by signature."""

from __future__ import annotations

# Files with these extensions count as images. Formats that cannot be decoded are included, so that they are reported.
EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif jif mpo png apng webp gif bmp dib tif tiff avif avifs jp2 j2k jpc jpf jpx j2c "
    b"ppm pgm pbm pnm pfm tga qoi ico heic heif hif jxl".split()
)
# Formats with a signature. Decoders of formats without one (TGA, SPIDER) accept noise; EPS would start Ghostscript.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO"),
    *("ICNS", "DDS", "PCX", "SGI", "PSD"),
)
SIGNATURES = {
    "JPEG": rb"\xff\xd8",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*",
    "AVIF": rb"....ftypavi[fs]",
}
