"""For cron: prints the runs that should be running but have not written their status for a minute, and ends with 1.

python3 lost.py RUN…
"""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

lost = []
for run in sys.argv[1:]:
    status = json.loads((Path(run) / "status.json").read_text(encoding="utf-8"))
    age = (datetime.now(timezone.utc) - datetime.fromisoformat(status["updated"])).total_seconds()
    if status["state"] in ("starting", "running") and age > 60:
        lost.append(f"{run}: no sign of rank 0 on {status['host']} for {age:.0f} s, at step {status['step']}")
print(*lost, sep="\n", end="\n" * bool(lost))
sys.exit(bool(lost))
