"""The pictures of README and docs, drawn from committed rows or photographed from a real run.

    python docs/_site/pictures.py chart                     # docs/images/loader-{light,dark}.svg, and the badges
    python docs/_site/pictures.py report runs/demo          # docs/images/report-{light,dark}.png, by chromium
    python docs/_site/pictures.py map map.html              # docs/images/map.png

A test compares the chart with the rows, and the badges with pyproject.toml. The report is that of `make demo`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
ROWS = ROOT / "benchmarks" / "results" / "peers.json"

COLOURS = {
    "light": {"text": "#1f2328", "faint": "#59636e", "ours": "#3f51b5", "others": "#b8c0cc"},
    "dark": {"text": "#f0f6fc", "faint": "#9198a1", "ours": "#8c9eff", "others": "#4a5361"},
}
WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 720, 232, 64, 20, 8, 44


def chart(scheme: str) -> str:
    """Images per second of each loader as bars, as SVG text."""
    result = json.loads(ROWS.read_text(encoding="utf-8"))
    loaders = [row for row in result["rows"] if row["kind"] in ("ours", "peer") and "imgs_per_sec" in row]
    loaders.sort(key=lambda row: -row["imgs_per_sec"])
    colours, most = COLOURS[scheme], loaders[0]["imgs_per_sec"]
    height = TOP + len(loaders) * (BAR + GAP) + 34
    title = "Two augmented views of 224 pixels: images per second on two CPU cores"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-size="14"'
        ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        f"<title>{title}</title>",
        f'<text x="0" y="18" font-size="16" font-weight="600" fill="{colours["text"]}">{title}</text>',
    ]
    for place, row in enumerate(loaders):
        y, rate = TOP + place * (BAR + GAP), row["imgs_per_sec"]
        ours = row["kind"] == "ours"
        long = (WIDTH - LEFT - RIGHT) * rate / most
        weight = ' font-weight="600"' if ours else ""
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end"{weight} fill="{colours["text"]}">'
            f"{escape(row['label'])}</text>",
            f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR}" rx="3"'
            f' fill="{colours["ours" if ours else "others"]}"/>',
            f'<text x="{LEFT + long + 8:.1f}" y="{y + 15}"{weight} fill="{colours["text"]}">{rate:,.0f}</text>',
        ]
    note = f"{result['environment']['cpu']}, {result['environment']['date'][:10]}; median of three runs"
    parts += [f'<text x="0" y="{height - 8}" font-size="12" fill="{colours["faint"]}">{escape(note)}</text>', "</svg>"]
    return "\n".join(parts) + "\n"


def badges() -> dict[str, str]:
    """README's badges by file name, as SVG text; those of pyproject.toml have its values."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def of_project(pattern: str) -> str:
        found = re.search(pattern, project)
        assert found
        return found[1]

    values = {
        "python": (of_project(r'requires-python = ">=(.+)"') + "+", "#3f51b5"),
        "licence": (of_project(r'license = "(.+)"'), "#3f51b5"),
        "status": (of_project(r"Development Status :: \d - (\w+)").lower(), "#b45309"),
        "gpu": ("not run yet", "#b45309"),
    }
    return {f"badge-{name}.svg": _badge(name, *value) for name, value in values.items()}


def _badge(name: str, value: str, colour: str) -> str:
    left, right = 14 + 7 * len(name), 14 + 7 * len(value)
    label = name.upper() if name == "gpu" else name
    style = 'font-size="12" font-family="Verdana, DejaVu Sans, sans-serif" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" {style}>'
        f"<title>{label}: {value}</title>"
        f'<rect width="{left + right}" height="20" rx="4" fill="{colour}"/>'
        f'<path d="M4 0h{left - 4}v20H4a4 4 0 0 1-4-4V4a4 4 0 0 1 4-4z" fill="#4a5361"/>'
        f'<text x="{left / 2}" y="14">{label}</text><text x="{left + right / 2}" y="14">{value}</text></svg>\n'
    )


def report(run: Path) -> None:
    """Photograph the top of a run's report in both colour schemes."""
    for scheme in ("light", "dark"):
        photograph(run / "report.html", f"report-{scheme}.png", 1100, 900, dark=scheme == "dark")


def photograph(page: Path, name: str, width: int, height: int, dark: bool = False) -> None:
    """Write the top of a page to docs/images."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("pictures: needs chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        line = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=5000"]
        line += [f"--blink-settings=preferredColorScheme={int(not dark)}", f"--window-size={width},{height}"]
        subprocess.run([*line, f"--screenshot={shot}", page.resolve().as_uri()], check=True, capture_output=True)
        # 128 colours are enough for a page, and a quarter of the bytes
        Image.open(shot).convert("RGB").quantize(128).save(IMAGES / name, optimize=True)


def main(words: list[str]) -> None:
    """Make the pictures that the command line names."""
    if words == ["chart"]:
        for scheme in COLOURS:
            (IMAGES / f"loader-{scheme}.svg").write_text(chart(scheme), encoding="utf-8")
        for name, text in badges().items():
            (IMAGES / name).write_text(text, encoding="utf-8")
    elif len(words) == 2 and words[0] == "report":
        report(Path(words[1]))
    elif len(words) == 2 and words[0] == "map":
        photograph(Path(words[1]), "map.png", 1280, 860)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
