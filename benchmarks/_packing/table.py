"""The rows of `duplicates.py` and `sources.py` as Markdown."""

from __future__ import annotations

from typing import Any

from _packing.copies import KINDS
from shards.words import counted


def duplicates(result: dict[str, Any]) -> str:
    """Tables by distance, of the cost of the scan, and of matching."""
    settings, machine = result["settings"], result["environment"]
    names = " | ".join(KINDS)
    lines = [f"| distance | precision | recall | exact | {names} | near, with contrast | left out wrongly |"]
    lines.append("| ---: " * 9 + "|")
    for row in result["rows"]:
        shares = [row["precision"], row["recall"], row["exact"], *(row[kind] for kind in KINDS), row["clear"]]
        distance = "content" if row["distance"] < 0 else row["distance"]
        default = " (default)" if row["distance"] == result["default"] else ""
        cells = " | ".join(f"{share:.3f}" if share is not None else "" for share in shares)
        lines.append(
            f"| {distance}{default} | {cells} | {row['wrong']}, {row['wrong_of_others']} of another photograph |"
        )
    lines += [
        "",
        f"{settings['images']:,} images of {settings['width']} x {settings['height']} pixels, parts of "
        f"{settings['photos']} {settings['source']} that do not overlap; {settings['exact']} exact copies and "
        f"{settings['near']} near ones: resized to 40 to 90 %, recompressed at quality 20 to 80, or cropped by 5 % of "
        f"both sides at a random place. Precision and recall are of the images that are left out as copies of their "
        f"original, or the reverse. {settings['flat']:,} images have too "
        "little contrast for a hash, far more than among whole photographs; the last column of recall is without them.",
        "",
        "| work, in one process | images/s | lowest to highest |",
        "| --- | ---: | ---: |",
    ]
    for row in result["cost"]:
        lines.append(f"| {row['work']} | {row['rate']:,.0f} | {row['lowest']:,.0f} to {row['highest']:,.0f} |")
    lines += [
        "",
        f"{settings['cost_images']:,} JPEGs of {settings['cost_width']} x {settings['cost_height']} pixels, "
        f"{settings['cost_bytes'] / 1e3:,.0f} kB each, in turn {settings['repeats']} times, medians; "
        f"on {machine['cpu']}.",
        "",
        "| images to match | seconds | memory, MB |",
        "| ---: | ---: | ---: |",
    ]
    lines += [f"| {row['images']:,} | {row['seconds']:,.1f} | {row['mb']:,.0f} |" for row in result["matching"]]
    lines += [
        "",
        "Matching hashes that are all different, in one thread; memory with the hashes. "
        f"{machine['date']}, commit {machine['commit']}; Python {machine['python']}.",
    ]
    return "\n".join(lines) + "\n"


def sources(result: dict[str, Any]) -> str:
    """A table of the rate from each kind of source."""
    rates, machine, first = result["rates"], result["environment"], result["rows"][0]
    lines = ["| source | images/s | of the folder's | lowest to highest |", "| --- | ---: | ---: | --- |"]
    for row in result["rows"]:
        each = rates[row["source"]]
        lines.append(
            f"| {row['source']} | {row['imgs_per_sec']:,.0f} | {row['of_folder']:.2f} | "
            f"{min(each):,.0f} to {max(each):,.0f} |"
        )
    lines += [
        "",
        f"{first['images']:,} {result['of']}, {counted(first['workers'], 'process')}; medians of "
        f"{len(rates[first['source']])} runs in turn. On {machine['cpu']}, {machine['cores']} cores, {machine['date']},"
        f" commit {machine['commit']}; Python {machine['python']}.",
    ]
    return "\n".join(lines) + "\n"
