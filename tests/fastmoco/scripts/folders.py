"""Run under torchrun: choose a default folder, then try one that is in use; each rank writes what it got.

folders.py IN_USE
"""

import sys
from pathlib import Path

from fastmoco.ranks.world import world
from fastmoco.runs.errors import FolderInUse
from fastmoco.runs.folder import Wanted, run_folder

with world() as here:
    got = []
    with run_folder(None, here, Wanted("moco", 10, lambda folder, recorded: None)) as folder:
        got.append(str(folder))
        (folder / f"rank-{here.rank}").touch()
    try:
        with run_folder(Path(sys.argv[1]), here, Wanted("moco", 10, lambda folder, recorded: None)):
            pass
    except FolderInUse as error:
        got.append(str(error))
    Path(f"got-{here.rank}").write_text("\n".join(got))
