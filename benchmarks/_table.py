"""The figures of `imgs_per_sec.py` for a person."""

from __future__ import annotations

import os
import statistics
from typing import Any

from rich.table import Table


def table(result: dict[str, Any]) -> Table:
    """The figures for a person."""
    shown = Table(
        title=f"{result['arch']}, batch {result['batch_size']}, {result['image_size']} pixels, "
        f"{result['precision']}, {result['device']}",
        caption=f"images: {result['shards']}; loader {result['backend']}: {result['reason']}",
    )
    shown.add_column("what")
    for name in ("images/s", "lowest", "highest"):
        shown.add_column(name, justify="right")
    for name in ("loader", "model", "end_to_end"):
        values = result["stretches"][name]
        shown.add_row(
            name.replace("_", " "), *(f"{v:,.0f}" for v in (statistics.median(values), min(values), max(values)))
        )
    return shown


def verdict(result: dict[str, Any]) -> str:
    """One line that says what holds the speed back."""
    loader, model, efficiency = (result[k] for k in ("loader_imgs_per_sec", "model_imgs_per_sec", "efficiency"))
    slower, ratio = ("loader", model / loader) if loader < model else ("model", loader / model)
    reach = f"end to end reaches {efficiency:.0%} of it and waits for data {result['data_wait']:.0%} of the time"
    line = f"The {slower} is the bottleneck, {ratio:.1f} times slower than the other; {reach}."
    if result["device"] == "cpu":
        line += (
            f" On a CPU both share its {os.cpu_count()} cores: that is {result['of_shared_cores']:.0%} of what sharing"
            f" allows, and beside a sleep as long {result['data_wait_beside_sleep']:.1%} of the time is waiting."
        )
    return line
