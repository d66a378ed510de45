"""Probes of frozen features: kNN and linear classification of a labelled set."""
