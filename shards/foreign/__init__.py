"""Tars written by other programs: indexed in place, or streamed."""
