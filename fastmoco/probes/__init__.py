"""What frozen features are worth: kNN and linear classification of a labelled set."""
