"""Packing: from a source of images to a committed shard set."""
