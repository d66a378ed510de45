"""Parts of `imgs_per_sec.py --peers`: the loaders, one process for each measurement, table and chart."""
