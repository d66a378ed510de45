from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipelines import ViewSpec
from shards import ShardSet

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "imgs_per_sec.py"
sys.path.insert(0, str(BENCHMARKS))  # as when a script is run

from _arguments import Args, check  # noqa: E402
from _command import BenchmarkError  # noqa: E402
from _peers.compare import Settings, compare, prepare, ratios, row  # noqa: E402
from _peers.contestants import CONTESTANTS, Contestant  # noqa: E402
from _peers.run import stretch  # noqa: E402
from _peers.work import Work  # noqa: E402

COUNT, BATCH, SIDE = 24, 8, 32
SPEC = ViewSpec.moco_v2(SIDE)
TINT = np.array([1.0, 0.8, 0.5])


def photo(number: int) -> Image.Image:
    """Brighter to the right, four waves high, of one tint, with grain: every operation leaves a measurable trace."""
    grain = np.random.default_rng(number).normal(0, 30, (240, 320))
    luma = np.linspace(80, 170, 320) + 20 * np.sin(np.linspace(0, 8 * np.pi, 240))[:, None] + grain
    return Image.fromarray((luma[..., None] * TINT).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    from shards import PackOptions, pack

    folder = tmp_path_factory.mktemp("peers")
    (folder / "photos").mkdir()
    for number in range(COUNT):
        photo(number).save(folder / "photos" / f"{number}.jpg", quality=95, subsampling=0)
    pack(PackOptions(folder / "photos", folder / "set", workers=1), progress=False)
    work = Work(folder, BATCH, SIDE, workers=1)
    with ShardSet(folder / "set") as shards:
        assert prepare(shards, 1000, work) == COUNT
    return work


def taken(contestant: Contestant, work: Work, batches: int):
    if contestant.missing:
        pytest.skip(contestant.missing)
    torch.manual_seed(0)  # which the workers of a DataLoader are seeded from
    running = contestant.start(work)
    try:
        return [tuple(part.clone() if isinstance(part, torch.Tensor) else part for part in next(running))
                for _ in range(batches)]  # fmt: skip
    finally:
        running.close()


def contestants(*kinds):
    """All ways to load. Those of a GPU run here on the CPU: by DALI's CPU operators, and on CPU tensors."""
    # of several entries with one function, such as fastmoco's torch backend, the CPU's
    ways = {c.start: c for device in ("cuda", "cpu") for c in CONTESTANTS[device].values()}
    return [pytest.param(c, id=c.name) for c in ways.values() if c.kind in kinds]


@pytest.fixture(scope="module")
def views(work):
    """A contestant's batches of two epochs, made once for each contestant."""
    made = {}
    return lambda contestant: (
        made.get(contestant.start) or made.setdefault(contestant.start, taken(contestant, work, 2 * COUNT // BATCH))
    )


@pytest.mark.parametrize("contestant", contestants("ours", "peer", "other"))
def test_every_view_is_normalised_float32_and_never_made_again(contestant, views):
    batches = views(contestant)
    least = [(0 - mean) / std for mean, std in zip(SPEC.mean, SPEC.std, strict=True)]
    most = [(1 - mean) / std for mean, std in zip(SPEC.mean, SPEC.std, strict=True)]
    for batch in batches:
        assert len(batch) == (1 if contestant.kind == "other" else 2)
        for part in batch:
            assert part.shape == (BATCH, 3, SIDE, SIDE) and part.dtype == torch.float32
            for channel in range(3):
                assert part[:, channel].min() >= least[channel] - 1e-3
                assert part[:, channel].max() <= most[channel] + 1e-3
    every = torch.cat([part for batch in batches for part in batch])
    assert every.min() < -1 and every.max() > 1  # normalised, not in 0..1
    # the two views of an image differ, and its views differ from epoch to epoch
    for one, other in itertools.combinations(every, 2):
        assert not torch.equal(one, other)


def features(view: torch.Tensor) -> tuple[float, float, float, float]:
    """Slope of the brightness to the right, waves, tint (0 of a grey view), and how much of the grain is left."""
    pixels = view.numpy() * np.reshape(SPEC.std, (3, 1, 1)) + np.reshape(SPEC.mean, (3, 1, 1))
    luma = pixels.mean(0)
    across = luma.mean(0)
    first = np.diff(luma, axis=1)
    grain = np.diff(first, axis=1).var() / max(first.var(), 1e-12)  # of white noise 3, of a smooth picture near 0
    red, _, blue = pixels.mean((1, 2))
    down = luma.mean(1) - luma.mean()
    waves = np.abs(np.fft.rfft(down * np.hanning(SIDE), 16 * SIDE))[8:].argmax() / 16 + 0.5
    return float(np.polyfit(np.arange(SIDE), across, 1)[0]), waves, float((red - blue) / pixels.mean()), float(grain)


@pytest.mark.parametrize("contestant", contestants("ours", "peer", "other"))
def test_every_part_of_the_augmentation_is_applied(contestant, views):
    batches = views(contestant)
    slope, waves, tint, grain = np.array([features(view) for batch in batches for part in batch for view in part]).T
    assert 0.1 < (slope < 0).mean() < 0.9  # flipped
    assert waves.min() < 2.8 and waves.max() > 3.2 and waves.std() > 0.3  # cropped, and to many heights
    if contestant.kind == "other":
        return
    grey = np.abs(tint) < 0.01
    assert 0 < grey.mean() < 0.5
    assert tint[~grey].std() > 0.05  # recoloured; the image is of one tint
    assert 0.1 < (grain < 2).mean() < 0.9  # blurred


class Half(Work):
    """A CPU's work with a GPU's dtype."""

    dtype = torch.float16  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize("name", [name for name in CONTESTANTS["cuda"] if name != "ffcv"])
def test_views_of_half_precision_are_those_of_a_gpu(name, work):
    contestant = CONTESTANTS["cuda"][name]
    parts = [part for batch in taken(contestant, Half(work.folder, BATCH, SIDE, 1), 4) for part in batch]
    for part in parts:
        assert part.shape == (BATCH, 3, SIDE, SIDE) and part.dtype == torch.float16
    # over all of them: those of one batch may all be dark, as some contestants draw their views without a seed
    assert -2.2 < min(part.min() for part in parts) < -1 and 1 < max(part.max() for part in parts) < 2.7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CONTESTANTS["cuda"])
def test_batches_are_delivered_on_the_gpu(name, work):
    """Not yet run on a GPU."""
    for batch in taken(CONTESTANTS["cuda"][name], Work(work.folder, BATCH, SIDE, 1, "cuda"), 3):
        for part in batch:
            assert part.is_cuda and part.shape == (BATCH, 3, SIDE, SIDE) and part.dtype == torch.float16
            assert -2.2 < part.min() < -1 and 1 < part.max() < 2.7


@pytest.mark.parametrize("contestant", contestants("limit"))
def test_a_decoder_goes_through_all_images(contestant, work):
    batches = taken(contestant, work, COUNT // BATCH)
    assert sorted(number for (ids,) in batches for number in ids) == list(range(COUNT))


def test_files_and_tars_hold_the_same_bytes(work):
    files = sorted(path.read_bytes() for path in work.images.rglob("*.jpg"))
    with ShardSet(work.shards) as shards:
        assert files == sorted(shards.read(sample_id) for sample_id in range(len(shards)))
        assert len(shards.manifest.records) >= 2 * work.workers
    assert files == sorted(path.read_bytes() for path in (work.folder / "photos").iterdir())


def test_a_stretch_counts_what_comes_between_its_first_and_its_last_volley(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def batches():
        nonlocal now
        while True:
            now += 0.5  # two workers' batches come at once
            yield (range(10), range(10))
            yield (range(10), range(10))

    def settle():
        nonlocal now
        now += 0.25  # what the device still had to do

    assert stretch(batches(), workers=2, seconds=4.0) == (160, 4.0)
    assert stretch(batches(), workers=2, seconds=4.0, settle=settle) == (160, 4.25)


def test_ratios_are_of_medians_and_name_the_fastest_peer_that_does_the_same():
    rates = {"torch": [100, 900, 800], "original": [100, 90, 200], "lightly": [300, 200, 100], "ffcv": [999.0] * 3}
    rates["decode-only"] = [2000, 1600, 1000]
    rows = [row(CONTESTANTS["cpu"][name], values) for name, values in rates.items()]
    gpu = {"dali": [60.0], "torch": [20.0], "dali-reader": [30.0], "torchvision-nvjpeg": [10.0]}
    on_gpu = [row(CONTESTANTS["cuda"][name], values) for name, values in gpu.items()]
    assert ratios(on_gpu) == {"dali / fastest peer (dali-reader)": 2}
    assert ratios(on_gpu[1:]) == {"torch / fastest peer (dali-reader)": 20 / 30}
    assert ratios(rows) == {"torch / original": 8, "torch / decode-only": 0.5, "torch / fastest peer (lightly)": 4}


def test_a_contestant_that_is_not_installed_is_listed_as_missing():
    absent = Contestant("x", "X", "peer", lambda _: iter(()), ("json", "nowhere.at_all"), "pip install x")
    assert row(absent, None)["missing"] == "not installed (nowhere.at_all): pip install x"
    assert row(CONTESTANTS["cpu"]["torch"], [1.0])["missing"] == ""


@pytest.mark.slow
@pytest.mark.long
def test_the_command_writes_rows_table_and_chart(command, shard_sets, tmp_path):
    chosen = ("torch", "decode-only", *(c.name for c in CONTESTANTS["cpu"].values() if c.missing))
    sizes = ("--batch-size", "8", "--image-size", "32", "--seconds", "0.1", "--repeats", "1", "--threads", "1")
    call = (
        sys.executable,
        SCRIPT,
        "--peers",
        "--device",
        "cpu",
        "--shards",
        shard_sets / "train",
        *sizes,
        "--images",
        "40",
    )
    shown = command(*call, "--only", *chosen, "--json", "new/peers.json").stdout
    result = json.loads((tmp_path / "new/peers.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == set(chosen)
    for name in ("torch", "decode-only"):
        assert len(rows[name]["runs"]) == 1 and rows[name]["lowest"] <= rows[name]["imgs_per_sec"]
    assert result["ratios"]["torch / decode-only"] > 0
    assert result["settings"]["images"] == 40 and {"date", "commit", "packages"} <= set(result["environment"])
    table, chart = ((tmp_path / f"new/peers.{kind}").read_text() for kind in ("md", "svg"))
    assert shown == table
    for row_ in rows.values():
        assert row_["label"] in table and (row_["missing"] or "images/s") in table
        assert ("imgs_per_sec" in row_) == (f">{row_['label']}</text>" in chart)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"peers": True, "arch": "resnet18"}, "--arch"), ({"images": 8}, "--images"), ({"device": "cpu"}, "--device")],
)
def test_flags_without_effect_are_refused(wrong, says):
    with pytest.raises(BenchmarkError, match=says):
        check(Args(**wrong))


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--device", "cpu", "--only", "dali"), "no contestant 'dali'; known: torch, dali-cpu"),
        pytest.param(("--device", "cuda"), "--device cuda: torch finds no CUDA device; use --device cpu", marks=NO_GPU),
    ],
)
def test_impossible_comparisons_end_in_one_line(in_process, shard_sets, asked, says):
    where = ("--shards", shard_sets / "train", "--batch-size", "8")
    result = in_process(SCRIPT, "--peers", *asked, *where, check=False)
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_too_few_images_for_a_batch_are_refused(shard_sets):
    settings = Settings(batch_size=64, image_size=32, workers=1, images=8, seconds=0.1, repeats=1)
    with (
        ShardSet(shard_sets / "train") as shards,
        pytest.raises(BenchmarkError, match="--images 8 is less than a batch of 64"),
    ):
        compare(shards, settings, Console())
