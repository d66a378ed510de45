"""How a command ends where the user can mend what is wrong."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def fail(program: str, reason: BaseException, code: int) -> NoReturn:
    """End the program with one line and an exit code; all ranks meet the same error, and one tells of it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{program}: {reason}", file=sys.stderr)
    raise SystemExit(code)
