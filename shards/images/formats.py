"""Image formats by file extension, by decoder and by signature."""

from __future__ import annotations

# Files that are taken for images by their name; with formats that cannot be decoded, so that these are reported.
EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif jif mpo png apng webp gif bmp dib tif tiff avif avifs jp2 j2k jpc jpf jpx j2c "
    b"ppm pgm pbm pnm pfm tga qoi ico heic heif hif jxl".split()
)
# Formats with a signature. Those without one (TGA, SPIDER) take noise for images; EPS would start Ghostscript.
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
