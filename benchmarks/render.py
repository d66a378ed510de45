"""Tables and charts of rows that were measured before, without measuring again.

    python benchmarks/render.py [ROWS ...] [--scale small|imagenet]

ROWS are files written by `imgs_per_sec.py --peers`, `communication.py`, `duplicates.py`, `embedding.py`,
`search_index.py` or `sources.py`, with --json, or by `learning.py` or `hour.py`; default: all such files in results/.
The table (.md) and the chart (.svg) of each are written beside it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _command import BenchmarkError
from _communication import show as communication
from _features_tables import embedding, search_index
from _learning import budget_table
from _learning.budget import EXPERIMENT
from _learning.experiments import EXPERIMENTS, Scale
from _learning.plot import plot
from _learning.table import table
from _packing.table import duplicates, sources
from _peers import show as peers
from _results import read_csv, write_beside
from fastmoco.commandline import parser_of
from shards.command import command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_JSON = ("peers", "communication", "duplicates", "embedding", "search_index", "sources")
HOUR = "hour_"
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Args:
    """Write tables and charts of measured rows again."""

    scale: Scale = "small"
    """Scale of the experiments of `learning.py`."""


# not `script`: ROWS are positional arguments, and a dataclass of settings has flags only
def main() -> None:
    """Entry of the script."""
    command("render", run)


def run() -> None:
    """Write table and chart of each file on the command line."""
    parser = parser_of(Args, f"python {sys.argv[0]}")
    parser.add_argument("rows", type=Path, nargs="*", help="files of rows (default: all in results/ that have a chart)")
    parser.usage = f"{parser.prog} [ROWS ...] [flags]"
    args = parser.parse_args()
    for path in args.rows or committed():
        write_beside(path, *shown(path, args.scale))
        print(path)


def committed() -> list[Path]:
    """The files of rows in results/ that this script can show."""
    experiments = [path for name in EXPERIMENTS for path in RESULTS.glob(f"{name.replace('-', '_')}*.csv")]
    hours = (path for path in RESULTS.glob(f"{HOUR}*.csv") if not path.stem.endswith("_pace"))
    return sorted([*experiments, *hours, *(path for name in _JSON for path in RESULTS.glob(f"{name}*.json"))])


def shown(path: Path, scale: Scale) -> tuple[str, Figure | None]:
    """Table and chart of a file of rows; raises BenchmarkError."""
    if path.suffix == ".csv" and path.stem.startswith(HOUR):
        rows = read_csv(path)
        chart = plot("hour", EXPERIMENT, "small", path.stem.removeprefix(HOUR).replace("_", "-"), rows)
        return budget_table.table(rows), chart
    if path.suffix == ".csv":
        for name, experiment in EXPERIMENTS.items():
            label = name.replace("-", "_")
            if path.stem == label or path.stem.startswith(f"{label}_"):
                rows, set_name = read_csv(path), path.stem[len(label) + 1 :].replace("_", "-")
                return table(name, experiment, scale, rows), plot(name, experiment, scale, set_name, rows)
        raise BenchmarkError(f"{path}: the name starts with none of the experiments {', '.join(EXPERIMENTS)}")
    result = json.loads(path.read_text(encoding="utf-8"))
    if "measured" in result:
        return communication.markdown(result), communication.chart(result)
    if "matching" in result:
        return duplicates(result), None
    if "of" in result:
        return sources(result), None
    if "row" in result and "rates" in result:
        return embedding(result), None
    if "rows" in result and "recall_at_10" in result["rows"][0]:
        return search_index(result), None
    if "ratios" in result and "rows" in result:
        return peers.markdown(result), peers.bar_chart(result)
    raise BenchmarkError(f"{path}: rows of neither imgs_per_sec.py --peers nor another script with a table")


if __name__ == "__main__":
    main()
