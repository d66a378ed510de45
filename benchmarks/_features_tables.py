"""The rows of `embedding.py` and `search_index.py` as Markdown."""

from __future__ import annotations

from typing import Any


def embedding(result: dict[str, Any]) -> str:
    """A table of one row: images per second of each turn's work, and what follows from them."""
    row, machine, turns = result["row"], result["environment"], len(result["rates"]["embed"])
    one_by_one = row.get("efficiency_of_one_after_the_other")
    lines = [
        "| encoder | reading alone, images/s | encoder alone | `fastmoco embed` | efficiency | one after the other |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| {row['arch']}, {row['image_size']} pixels | {row['loader_imgs_per_sec']:,.1f} | "
        f"{row['encoder_imgs_per_sec']:,.1f} | {row['embed_imgs_per_sec']:,.1f} | {row['efficiency']:.2f} | "
        f"{'' if one_by_one is None else f'{one_by_one:.2f}'} |",
        "",
        f"{row['images']:,} images in batches of {row['batch_size']}; medians of {turns} turns. Efficiency is the "
        "rate of `fastmoco embed` over the smaller of the other two; the last column is what it would be if images "
        "were read and encoded in turn.",
        "",
        _made_on(machine),
    ]
    return "\n".join(lines) + "\n"


def search_index(result: dict[str, Any]) -> str:
    """A table of recall, time and size by number of images."""
    lines = [
        "| images | lists searched | found of the ten nearest | search, s | comparing all, s | writing, s | MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lists = f"{row['probed']:,} of {row['lists']:,}" if row["lists"] else "no lists"
        lines.append(
            f"| {row['images']:,} | {lists} | {100 * row['recall_at_10']:.1f} % | {row['index_seconds']:.2f} | "
            f"{row['all_seconds']:.2f} | {row['build_seconds']:,.1f} | {row['index_bytes'] / 1e6:,.0f} |"
        )
    first = result["rows"][0]
    lines += [
        "",
        f"Made features of dimension {first['dim']}; {first['queries']} images at once, which are not of the set. A "
        "search opens features and index again.",
        "",
        _made_on(result["environment"]),
    ]
    return "\n".join(lines) + "\n"


def _made_on(machine: dict[str, Any]) -> str:
    return f"On {machine['cpu']}, {machine['date']}, commit {machine['commit']}; torch {machine['packages']['torch']}."
