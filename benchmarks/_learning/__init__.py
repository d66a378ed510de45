"""Parts of `learning.py`: the experiments as data, their runs, table and plot."""
