"""What every long-running command shares: checkpoints, records, signals, errors."""
