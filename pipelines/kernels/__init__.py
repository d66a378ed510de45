"""Compiled loops over pixels, for views that are made on a CPU."""
