"""Images that filters leave out: small, long, of a single colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import PackError, PackOptions, pack
from shards.images.encode import Rejected, encode, reduced
from shards.images.options import EncodeOptions
from tests.support.pictures import encoded, gradient, jpeg


def refused(data: bytes, **options) -> str:
    """The reason to leave an image out, the same in packing and in comparing; empty if it is packed."""
    reasons = []
    for work in (encode, lambda data, options: reduced(data, options, 135)):
        try:
            work(data, EncodeOptions(**options))
            reasons.append("")
        except Rejected as rejected:
            reasons.append(str(rejected))
    assert reasons[0] == reasons[1]
    return reasons[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_shorter_side_and_the_ratio_of_the_sides_decide_before_resizing(kind):
    data = encoded(gradient(120, 40, seed=1), kind)
    assert refused(data, min_side=40, max_aspect=3, resize=16) == ""
    assert refused(data, min_side=41) == "too small: 120 x 40 pixels, under 41 on a side"
    assert refused(data, max_aspect=2.99) == "too long: 120 x 40 pixels, over 2.99 to 1"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60)])
def test_an_image_of_a_single_colour_is_blank_with_noise_too(colour, check):
    flat = np.full((120, 160, 3), colour, np.int16)
    noisy = flat + np.random.default_rng(0).integers(-12, 13, flat.shape)
    for pixels in (flat, noisy):
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        for kind, options in (("PNG", {}), ("JPEG", {"quality": 60})):
            data = encoded(image, kind, **options)
            assert refused(data, check=check) == ""
            assert refused(data, check=check, drop_blank=True).startswith("blank: a single colour, RGB ")


def test_what_shows_something_is_not_blank():
    dot = Image.new("L", (400, 300), 255)
    dot.paste(0, (200, 150, 225, 169))  # one of 16 x 16 parts
    equally_bright = Image.new("RGB", (160, 120), (200, 0, 0))
    equally_bright.paste((0, 102, 0), (80, 0, 160, 120))
    assert np.ptp(np.asarray(equally_bright.convert("L"))) <= 1
    shade = Image.fromarray(np.repeat(np.linspace(100, 112, 160).astype(np.uint8)[None], 120, 0))
    for image in (dot, equally_bright, shade, gradient()):
        for kind in ("JPEG", "PNG"):
            assert refused(encoded(image, kind), drop_blank=True) == ""
    assert refused(jpeg(Image.new("L", (100, 100), 7)), drop_blank=True) == "blank: a single colour, grey 7"


def test_filters_are_counted_and_listed_and_are_part_of_what_a_set_is(tmp_path, capsys):
    images = {"a.png": gradient(64, 40), "b.png": gradient(200, 40), "c.png": Image.new("RGB", (60, 60))}
    for name, image in images.items():
        (tmp_path / "src").mkdir(exist_ok=True)
        image.save(tmp_path / "src" / name)
    out = tmp_path / "out"
    pack(tmp_path / "src", out, max_aspect=2.5, drop_blank=True, workers=1)
    assert "left out 2 (1 " in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert {line["source"]: line["reason"] for line in lines} == {
        "b.png": "too long: 200 x 40 pixels, over 2.5 to 1",
        "c.png": "blank: a single colour, RGB 0, 0, 0",
    }
    with pytest.raises(PackError, match=r"--max-aspect was 2.5, now 2; --drop-blank was True, now not given"):
        pack(tmp_path / "src", out, max_aspect=2, workers=1)
    # an iterable has these filters too, but is read once and so not compared
    made = pack(list(images.values()), tmp_path / "items", max_aspect=2.5, drop_blank=True, progress=False)
    assert (made.samples, made.quarantined) == (1, 2)
    with pytest.raises(PackError, match="unknown option drop_duplicates='exact'"):
        pack(list(images.values()), tmp_path / "more", drop_duplicates="exact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_side": 0}, "--min-side 0 is outside 1..65500"),
        ({"max_aspect": 0.5}, "--max-aspect 0.5 is outside 1..65500"),
        ({"drop_duplicates": "all"}, "unknown --drop-duplicates 'all'; known: exact, near"),
        ({"near_distance": 65, "drop_duplicates": "near"}, "--near-distance 65 is outside 0..64"),
        ({"near_distance": 3}, "--near-distance 3 is for --drop-duplicates near, or --not-in"),
        ({"near_distance": 3, "drop_duplicates": "exact"}, "--near-distance 3 is for --drop-duplicates near"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(PackError, match=message):
        PackOptions("src", "out", **options).validate()


def test_older_sets_are_continued():
    assert set(PackOptions(Path("a"), Path("b")).deciding()) == {
        *("shard_size", "resize", "quality", "max_side", "max_pixels", "check", "seed", "limit")
    }
