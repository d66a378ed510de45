"""Fine-tuning: all layers of an encoder and a new classifier, on all labels or a few."""
