"""The training loop and what it needs: schedule, step, checkpoints, metrics, monitor."""
