"""The ranks of a run: how they join, exchange tensors, and average gradients."""
