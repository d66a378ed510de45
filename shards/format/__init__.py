"""The shard set on disk, as docs/format.md describes it."""
