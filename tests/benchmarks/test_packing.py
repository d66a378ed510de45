from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "packing.py"


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos" / "holidays"
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:90, 0:120]
    for number in range(4):
        pixels = np.stack([x * 2, y * 2, (x + y + 9 * number) % 256], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=92)
    return folder.parent


@pytest.mark.slow
def test_it_measures_all_and_writes_json(command, photos, tmp_path):
    small = (
        "--images",
        "20",
        "--resized",
        "10",
        "--large",
        "2",
        "--short-side",
        "48",
        "--repeats",
        "2",
        "--workers",
        "2",
    )
    shown = command(sys.executable, SCRIPT, "--photos", photos, *small, "--json", "new/packing.json").stdout
    result = json.loads((tmp_path / "new/packing.json").read_text())
    assert {
        "decode only",
        "pack, checked",
        "pack, unchecked",
        "GNU tar",
        "webdataset ShardWriter",
        "pack, resized",
    } <= {*result["runs"]}
    assert all(len(values) == 2 and min(values) > 0 for values in result["runs"].values())
    for name in ("checked / decode only", "unchecked / GNU tar", "resized / Pillow pool"):
        assert name in shown
        assert result["ratios"][name] > 0
    for values in result["psnr"].values():
        assert values["packed"] > values["Pillow"] - 0.1
        assert values["packed"] > 30
    assert {"date", "commit", "cpu", "packages"} <= set(result["environment"])


def test_a_folder_without_photographs_is_refused(command, tmp_path):
    done = command(sys.executable, SCRIPT, "--photos", tmp_path, check=False)
    assert done.returncode == 2
    assert "no JPEG photographs" in done.stderr


def test_kinds_of_sources_are_compared_with_a_folder(in_process, photos, tmp_path):
    kinds = ("tar of tars", "zip, deflated")
    small = ("--images", 8, "--repeats", 2, "--workers", 1, "--kinds", *kinds)
    in_process(SCRIPT.with_name("sources.py"), "--photos", photos, *small, "--json", tmp_path / "sources.json")
    result = json.loads((tmp_path / "sources.json").read_text())
    assert [row["source"] for row in result["rows"]] == ["folder", *kinds]
    for row in result["rows"]:
        rates = result["rates"][row["source"]]
        assert len(rates) == 2 and row["imgs_per_sec"] == pytest.approx(sum(rates) / 2, abs=0.1)
        folder = sum(result["rates"]["folder"]) / 2
        assert row["of_folder"] == pytest.approx(sum(rates) / 2 / folder, abs=1e-3)
    shown = (tmp_path / "sources.md").read_text()
    assert "8 photographs, 1 process; medians of 2 runs in turn" in shown
    assert f"| zip, deflated | {row['imgs_per_sec']:,.0f} | {row['of_folder']:.2f} |" in shown
