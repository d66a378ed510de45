"""Run under torchrun: a command of fastmoco whose ranks have working folders of their own, as on nodes.

opened.py COMMAND FLAGS: rank r runs it in the folder r.
"""

import os

from fastmoco.__main__ import main

os.chdir(os.environ["RANK"])
main()
