"""The rows of `imgs_per_sec.py --peers` as a Markdown table and as a bar chart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _charts import AMBER, BLACK, BLUE, GREY, STONE, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "ours": (BLUE, "fastmoco"), "peer": (GREY, "same two views"), "other": (STONE, "less work, see the table"),
    "limit": (AMBER, "decoding alone"),
}  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """Table and ratios, with the settings and the environment."""
    settings, machine = result["settings"], result["environment"]
    lines = ["| | images/s | lowest to highest | |", "| --- | ---: | ---: | --- |"]
    for row in result["rows"]:
        if "imgs_per_sec" in row:
            figures = f"{row['imgs_per_sec']:,.0f} | {row['lowest']:,.0f} to {row['highest']:,.0f}"
            lines.append(f"| {row['label']} | {figures} | {row['note']} |")
        else:
            lines.append(f"| {row['label']} | – | – | {row['missing']} |")
    lines.append("")
    lines += [f"- {name}: {value:.2f}" for name, value in result["ratios"].items()]
    gpu = result.get("gpu")  # rows of earlier versions do not have it
    there = f" and one {gpu}, which receives the views in float16" if gpu else ""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines += [
        "",
        f"{settings['images']:,} images, batches of {settings['batch_size']}, two views of {settings['image_size']} "
        f"pixels; {settings['workers']} workers on as many cores, {machine['cpu']}{there}; median of "
        f"{settings['repeats']} runs of {settings['seconds']:g} s in turn. {machine['date']}, "
        f"commit {machine['commit']}; Python {machine['python']}, {packages}.",
    ]
    return "\n".join(lines) + "\n"


def bar_chart(result: dict[str, Any]) -> Figure:
    """A bar per measured row, with a line from its lowest to its highest run."""
    rows = [row for row in result["rows"] if "imgs_per_sec" in row]
    with panels(1, 8.0, 0.9 + 0.32 * len(rows)) as (figure, (axes,)):
        for kind, (colour, meaning) in KINDS.items():
            places = [place for place, row in enumerate(rows) if row["kind"] == kind]
            if places:
                axes.barh(places, [rows[place]["imgs_per_sec"] for place in places], 0.66, color=colour, label=meaning)
        for place, row in enumerate(rows):
            axes.hlines(place, row["lowest"], row["highest"], color=BLACK, linewidth=1.5)
            axes.annotate(f"{row['imgs_per_sec']:,.0f}", (row["highest"], place), (5, 0), va="center",
                          textcoords="offset points")  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.invert_yaxis()  # the first row on top
        axes.set_xlim(0, 1.08 * max(row["highest"] for row in rows))  # with space for the last number
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("images per second, both views made of each")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=len(KINDS), handlelength=1, handleheight=1)
    return figure
