"""Parts of `packing.py`: the photographs, and the other programs that pack or decode them."""
