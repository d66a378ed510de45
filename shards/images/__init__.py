"""One image: decode, check, convert, resize, encode."""
