"""Image formats by file extension, by decoder and by signature."""

from __future__ import annotations

# Files with these extensions count as images. Formats that cannot be decoded are included, so that they are reported.
EXTENSIONS = frozenset(
    b"jpg jpeg jpe jfif jif mpo png apng webp gif bmp dib tif tiff avif avifs jp2 j2k jpc jpf jpx j2c "
    b"ppm pgm pbm pnm pfm tga qoi ico heic heif hif jxl jls "
    b"dng nef nrw cr2 cr3 crw arw sr2 srf raf rw2 rwl orf pef srw 3fr iiq x3f mrw erf kdc dcr mef gpr".split()
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
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "AVIF": rb"....ftypavi[fs]",
}
# Camera raws that do not begin as a TIFF; `tiff.read_tiff` knows the others.
RAWS = {
    "Canon CR3": rb"....ftypcrx",
    "Canon CRW": rb"II..\0\0HEAPCCDR",
    "Fujifilm RAF": rb"FUJIFILMCCD-RAW",
    "Olympus ORF": rb"IIR[OS]|MMOR",
    "Panasonic RW2": rb"IIU\0",
    "Minolta MRW": rb"\0MRM",
    "Sigma X3F": rb"FOVb",
}
