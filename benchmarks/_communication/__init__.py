"""Parts of `communication.py`: ways to shuffle BatchNorm, table and chart."""
