"""Compiled loops over pixels, for views made on a CPU."""
