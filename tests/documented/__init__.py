"""The command lines and Python blocks of README and docs: found, parsed by their real parsers, and run.

`python -m tests.documented` runs all in a copy of the repository; `test_documented.py` parses all and runs a few.
"""
