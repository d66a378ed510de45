"""The rows of `communication.py` as a Markdown table and as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _charts import BLUE, GREY, LIGHT_BLUE, panels
from _communication.ways import WAYS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"bf16": BLUE, "fp32": LIGHT_BLUE, "original": GREY}


def markdown(result: dict[str, Any]) -> str:
    """Tables of the measurements and of the formula, with the settings and the environment."""
    settings, machine = result["settings"], result["environment"]
    lines = ["| ranks | | images, MB | index, kB | features, kB | ms | lowest to highest |"]
    lines.append("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in result["measured"]:
        spread = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
        lines.append(f"| {row['ranks']} | {_label(row)} | {_bytes(row)} | {row['ms']:,.0f} | {spread} |")
    lines += ["", "By the formula, which equals the counts above byte for byte:", ""]
    lines += ["| ranks | | images, MB | index, kB | features, kB |", "| ---: | --- | ---: | ---: | ---: |"]
    lines += [f"| {row['ranks']:,} | {_label(row)} | {_bytes(row)} |" for row in result["formula"]]
    lines += [
        "",
        f"Bytes that a rank receives in a step, its own share included, for {settings['batch']} images per rank of "
        f"{settings['image_size']} pixels and {settings['features']} features. Milliseconds of the slowest rank, "
        f"median of {settings['repeats']} steps in turn, gloo between processes on {machine['cores']} cores "
        f"({machine['cpu']}); with more processes than cores they measure computation, not a network. "
        f"{machine['date']}, commit {machine['commit']}; Python {machine['python']}, torch "
        f"{machine['packages']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _label(row: dict[str, Any]) -> str:
    return WAYS[row["way"]].label


def _bytes(row: dict[str, Any]) -> str:
    return f"{row['images'] / 1e6:,.1f} | {row['index'] / 1e3:,.1f} | {row['features'] / 1e3:,.0f}"


def chart(result: dict[str, Any]) -> Figure:
    """Megabytes that a rank receives in a step, by the number of ranks, on logarithmic axes."""
    with panels(1, 6.0, 4.2) as (figure, (axes,)):
        for name, way in WAYS.items():
            lines = ((result["formula"], "none", "-", way.label), (result["measured"], "o", "none", None))
            for rows, marker, line, label in lines:
                x = [row["ranks"] for row in rows if row["way"] == name]
                y = [(row["images"] + row["index"] + row["features"]) / 1e6 for row in rows if row["way"] == name]
                axes.plot(x, y, color=COLOURS[name], marker=marker, markersize=6, linestyle=line, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xticks(sorted({row["ranks"] for row in result["formula"]}))
        axes.set_ylim(bottom=1)
        axes.minorticks_off()
        axes.set_xlabel("ranks (dots: counted; lines: formula)")
        axes.set_title("megabytes that a rank receives in a step")
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", handlelength=1.2)
    return figure
