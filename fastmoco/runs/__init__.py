"""What every long-running command shares: the skeleton of a run, checkpoints, records, signals, errors."""
