"""For the textfile collector of Prometheus' node exporter: prints the figures of runs.

python3 prometheus.py RUN… > fastmoco.prom.new && mv fastmoco.prom.new /var/lib/node_exporter/fastmoco.prom
"""

import json
import sys
from datetime import datetime
from pathlib import Path

for run in sys.argv[1:]:
    status = json.loads((Path(run) / "status.json").read_text(encoding="utf-8"))
    values = {
        "step": status["step"],
        "running": int(status["state"] in ("starting", "running")),
        "warnings": len(status["warnings"]),
        "updated_seconds": datetime.fromisoformat(status["updated"]).timestamp(),
        **status["figures"],
    }
    for name, value in values.items():
        if value is not None:
            safe = "".join(char if char.isalnum() and char.isascii() else "_" for char in name)
            print(f'fastmoco_{safe}{{run="{Path(run).name}"}} {value}')
