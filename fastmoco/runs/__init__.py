"""What every long-running command shares: the skeleton of a run, records, signals, errors."""
