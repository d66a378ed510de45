"""Runs that are hit by faults: their processes from outside, and the comparison of what they made."""
