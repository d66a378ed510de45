"""Damaged inputs from seeds, through the product's own readers: `python -m tests.fuzz --kind png`."""
