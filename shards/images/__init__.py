"""The treatment of one image: decode, check, convert, resize, encode."""
