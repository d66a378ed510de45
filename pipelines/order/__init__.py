"""The order of samples: a pure function of (seed, epoch, step, rank, world size)."""
