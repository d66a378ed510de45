"""Tars that other programs wrote: indexed where they are, or read forwards."""
