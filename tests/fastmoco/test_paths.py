"""Paths that a command writes or reads are tried before any work; a trial changes nothing and leaves nothing."""

from __future__ import annotations

import concurrent.futures
import os
import re
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from fastmoco.results import check_file, check_folder, check_run_folder, write_json
from shards.errors import PathError
from shards.storage.files import write_whole
from shards.storage.places import is_url

ROOT = Path(__file__).resolve().parents[2]
PROBE = "--checkpoint TEXT --train NOWHERE --val NOWHERE"
EXPORT = "--checkpoint TEXT --format timm --out NEW"
FLAGS_OF_PATHS = [
    *[("fastmoco train", "--shards NOWHERE", flag) for flag in ("--out DIR", "--init IN", "--resume IN", "--views IN")],
    *[("fastmoco knn", PROBE, flag) for flag in ("--json FILE", "--cache DIR", "--checkpoint IN")],
    *[("fastmoco linear", PROBE, flag) for flag in ("--out DIR", "--json FILE", "--cache DIR", "--checkpoint IN")],
    *[("fastmoco finetune", PROBE, flag) for flag in ("--write-list FILE", "--list IN")],
    *[("fastmoco detect", "--train a:b --val a:c", flag) for flag in ("--out DIR", "--json FILE", "--init IN")],
    ("fastmoco embed", "--images NOWHERE --checkpoint TEXT", "--out DIR"),
    ("fastmoco similar", "a.jpg --in NOWHERE", "--json FILE"),
    ("fastmoco map", "--in NOWHERE", "--out FILE"),
    ("fastmoco embed", "--images NOWHERE --out NEW", "--checkpoint IN"),
    *[("fastmoco export", EXPORT, flag) for flag in ("--out FILE", "--checkpoint IN")],
    ("fastmoco export", "--out NEW", "--from-moco IN"),
    ("fastmoco demo", "", "--out DIR"),
    *[("fastmoco sheet", "--shards NOWHERE --out NEW.png", flag) for flag in ("--out FILE", "--views IN")],
    *[("imgs_per_sec", "--shards NOWHERE", "--json FILE"), ("billion", "", "--out FILE")],
]
"""Each flag with a path that is written, a FILE or a DIR, or read, IN."""
UNFIT = {
    "FILE": {
        "FOLDER": " FOLDER is a folder; give the name of a file",
        "FIFO": " FIFO is not a regular file; give the name of a file",
        "UNDER": " UNDER cannot be written: Not a directory; give a file that you may write to",
        "/proc/x.png": " /proc/x.png cannot be written: No such file or directory; give a file that you may write to",
        "LONG": " LONG cannot be written: File name too long; give a file that you may write to",
        "LOOP": " LOOP cannot be written: Too many levels of symbolic links; give a file that you may write to",
        "ODD": " SHOWN is not a name in UTF-8; give another",
        "s3://bucket/x.png": " s3://bucket/x.png is a URL; give a local file",
    },
    "DIR": {
        "TEXT": " TEXT is a file; give a folder",
        "UNDER": " UNDER cannot be written: Not a directory; give a folder that you may write to",
        "/proc/x": " /proc/x cannot be written: No such file or directory; give a folder that you may write to",
        "GONE": " GONE cannot be written: File exists; give a folder that you may write to",
        "ODD": " SHOWN is not a name in UTF-8; give another",
        "s3://bucket/x": " s3://bucket/x is a URL; give a local folder",
    },
    "IN": {
        "GONE": ": there is no file GONE; check the path",
        "UNDER": ": there is no file UNDER; check the path",
        "LOOP": ": LOOP cannot be read: Too many levels of symbolic links; check the path",
        "s3://bucket/x": ": s3://bucket/x is a URL; copy it to a local disk, and give that file",
    },
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What a path may lead to, by name."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "folder").mkdir()
    (folder / "text").write_text("neither a checkpoint nor a folder\n")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nothing")
    return {
        **{name: folder / name.lower() for name in ("FOLDER", "TEXT", "FIFO", "LOOP", "GONE", "NOWHERE", "NEW")},
        "UNDER": folder / "text" / "under", "LONG": folder / ("n" * 250),
        "ODD": os.fsdecode(os.fsencode(folder) + b"/\xff"), "SHOWN": f"{folder}/\\xff",
    }  # fmt: skip


def put_in(text, places):
    """A text with the names in capitals replaced by the places."""
    return re.sub(r"\b[A-Z]{3,}\b", lambda name: str(places.get(name[0], name[0])), text)


@pytest.mark.parametrize(("name", "arguments", "flag"), FLAGS_OF_PATHS)
def test_every_path_is_tried_before_any_work_and_nothing_is_left(in_process, places, tmp_path, name, arguments, flag):
    """Whatever is in the way: one line, no traceback, and no file is written or removed."""
    flag, kind = flag.split()
    before = snapshot(places["TEXT"].parent)
    for place, says in UNFIT[kind].items():
        if flag == "--resume":
            says = says.replace("file", "checkpoint").replace("check the path", "give the path of a step-XXXXXXXX.pt")
            says = says.replace("links; give the path of a step-XXXXXXXX.pt", "links; check the path")
            says = says.replace("that checkpoint", "that file")
        if is_url(place) and flag == "--out" and kind == "DIR":
            if name == "fastmoco embed":  # it writes to URLs
                continue
            if name != "fastmoco demo":  # a run
                says += f", and --checkpoint-copy {place} for a copy there"
        given = str(places.get(place, place))
        program = ["-m", "fastmoco.__main__", *name.split()[1:]]
        if " " not in name:
            program = [ROOT / "benchmarks" / f"{name}.py"]
        done = in_process(*program, *put_in(arguments, places).split(), flag, given, check=False)
        assert done.stderr == f"{name}: {flag}{put_in(says, places)}\n"
        assert done.returncode == 2 and not done.stdout
    assert snapshot(places["TEXT"].parent) == before and not list(tmp_path.iterdir())


def snapshot(folder):
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*"))


def test_a_trial_changes_no_file_and_removes_the_folders_it_makes(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    check_file("--json", kept)
    check_file("--json", tmp_path / "a/b/new.json")
    check_folder("--out", tmp_path / "a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"] and kept.read_text() == "kept"


def test_a_result_does_not_replace_what_is_read(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    encoder = tmp_path / "run" / "checkpoints" / "step-00000004.pt"
    encoder.write_text("weights")
    (tmp_path / "link.json").symlink_to(encoder)
    for path, given in (
        (encoder, encoder),
        (tmp_path / "link.json", str(encoder)),
        (encoder, tmp_path / "run"),
        (encoder.with_name("step-00000006.pt"), tmp_path / "run"),
        (tmp_path / "run" / "config.json", tmp_path / "run"),
    ):
        with pytest.raises(PathError, match=f"--out {path} would replace what is read from {given}; give another name"):
            check_file("--out", path, None, given)
    check_file("--json", tmp_path / "run" / "knn.json", tmp_path / "run")
    check_file("--json", tmp_path / "knn.json", encoder)
    check_file("--json", tmp_path / "knn.json", "untrained")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fastmoco train", "--shards NOWHERE"),
        ("fastmoco linear", PROBE),
        ("fastmoco finetune", PROBE),
        ("fastmoco detect", "--train a:b --val a:c"),
    ],
)
def test_a_folder_of_images_tars_or_features_is_no_runs(in_process, places, tmp_path, name, arguments):
    program = ["-m", "fastmoco.__main__", *name.split()[1:], *put_in(arguments, places).split(), "--out", tmp_path]
    for data in ("cats/1.JPG", "shard-000000.tar", "part-000000.npy"):
        (tmp_path / data).parent.mkdir(exist_ok=True)
        (tmp_path / data).touch()
        before = snapshot(tmp_path)
        done = in_process(*program, check=False)
        assert done.stderr == f"{name}: --out {tmp_path} is no run's folder: it holds {data}; name an empty folder\n"
        assert done.returncode == 2 and snapshot(tmp_path) == before
        (tmp_path / data).unlink()


def test_a_run_folder_may_hold_logs_before_the_run_and_pictures_after_it(tmp_path):
    (tmp_path / "logs/rank_0").mkdir(parents=True)
    (tmp_path / "logs/rank_0/stderr.log").touch()
    check_run_folder(tmp_path)
    (tmp_path / "views.png").touch()
    with pytest.raises(PathError, match="is no run's folder"):
        check_run_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"arch": "resnet10"}')
    check_run_folder(tmp_path)


@pytest.mark.parametrize("content", ['{"architectures": ["BertModel"]}', "", "[1]"])
def test_the_config_json_of_another_program_is_not_replaced(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PathError, match=r"is no run's folder: it holds a config\.json that no run wrote; name"):
        check_run_folder(tmp_path)
    assert (tmp_path / "config.json").read_text() == content and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "lock").touch()  # of a run whose config.json is damaged
    check_run_folder(tmp_path)


def test_a_full_disk_is_found_by_the_trial(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(
            PathError, match=r"--json .*/a/new.json cannot be written: File too large; give a file that"
        ):
            check_file("--json", tmp_path / "a/new.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_a_write_protected_file_is_found_by_the_trial(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("kept")
    if os.geteuid():
        kept.chmod(0o400)
    elif not shutil.which("chattr") or subprocess.run(["chattr", "+i", kept], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("root may write to any file here")
    try:
        with pytest.raises(PathError, match=r"cannot be written: (Operation not permitted|Permission denied)"):
            check_file("--json", kept)
    finally:
        if not os.geteuid():
            subprocess.run(["chattr", "-i", kept], check=True)


def test_a_result_replaces_what_a_link_leads_to_and_no_pipe(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "latest.json").symlink_to("real/1.json")
    write_json(tmp_path / "latest.json", {"a": 1})
    assert (tmp_path / "latest.json").is_symlink() and (tmp_path / "real/1.json").read_text() == '{\n  "a": 1\n}\n'
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_that_others_remove_meanwhile_is_written(tmp_path):
    path, ended = tmp_path / "status.json", threading.Event()

    def others():
        while not ended.is_set():
            path.touch()
            path.unlink(missing_ok=True)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        removing = pool.submit(others)
        try:
            for _ in range(300):
                write_whole(path, b"{}")
        finally:
            ended.set()
        removing.result()
