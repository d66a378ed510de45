"""The MoCo model: encoders, heads, the dictionary of keys, shuffled BatchNorm."""
