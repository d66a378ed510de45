"""Checkpoint files: written whole, and read only once they are known to be sound and harmless."""
