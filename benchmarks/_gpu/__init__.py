"""The parts of `gpu_suite.py`."""
