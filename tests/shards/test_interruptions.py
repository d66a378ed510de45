"""Killed, out of disk, run twice at once: the finished set equals that of an uninterrupted packing.

Each kind of packing is killed a few times; `make test-long` kills it 25 times.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shards import PackOptions, pack
from tests.support import pictures
from tests.support.commands import ROOT
from tests.support.folders import same_files
from tests.support.struck import struck

KILLS = int(os.environ.get("FASTMOCO_KILLS", "0"))
SHARD_SIZE = 40
PLAIN = (sys.executable, "-m", "shards.cli")
KINDS = [
    ("local", 4, 3),
    *(pytest.param("local", workers, 3, marks=pytest.mark.long) for workers in (1, 2)),
    pytest.param("ray", 2, 1, marks=pytest.mark.long),
]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """400 JPEGs, some to be encoded again, some bad: enough work to be interrupted."""
    root = tmp_path_factory.mktemp("many")
    kinds = [pictures.jpeg(pictures.gradient(500, 400, seed=seed)) for seed in range(8)]
    kinds.append(pictures.encoded(pictures.gradient(300, 200, seed=8), "PNG"))
    kinds.append(kinds[0][:-2000])
    for number in range(400):
        path = root / f"class {number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds[number % len(kinds)])
    return root


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    pack(PackOptions(many, out, workers=1, shard_size=SHARD_SIZE), progress=False)
    return out


class Packing:
    """A packing in a process group of its own, all of whose processes can be found again.

    `strike` begins the command line of a packing that a signal stops: see `struck`.
    """

    def __init__(
        self, src: Path, out: Path, executor: str, workers: int, *more: str, strike: Sequence[str] = PLAIN
    ) -> None:
        self.mark = f"FASTMOCO_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        flags = ["--shard-size", SHARD_SIZE, "--executor", executor, "--workers", workers, *more]
        self.process = subprocess.Popen(
            [*strike, *map(str, ["--src", src, "--out", out, *flags])],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, name: value},
        )

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def alive(self) -> list[str]:
        """Command lines of its processes, including those of Ray."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
        return found

    def wait_for_the_end_of_all(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"after {seconds} s there are still {left}"

    def result(self) -> tuple[int, str]:
        text, _ = self.process.communicate(timeout=300)
        return self.process.returncode, text


def assert_whole_or_absent(out: Path, reference: Path) -> None:
    """Files with a final name equal those of the uninterrupted set; a record implies a whole shard."""
    names = [path.name for path in out.glob("*") if path.suffix != ".partial"]
    for name in names:
        assert (out / name).read_bytes() == (reference / name).read_bytes(), name
    for name in names:
        if name.startswith("shard-") and name.endswith(".json") and json.loads((out / name).read_bytes())["samples"]:
            assert {name.replace(".json", suffix) for suffix in (".tar", ".npy", ".idx", ".names")} <= set(names), name


def finished(packing: Packing) -> str:
    code, text = packing.result()
    assert code == 0, text
    return text


@pytest.mark.parametrize(("executor", "workers", "kills"), KINDS)
def test_killed_at_random_moments_the_set_is_the_same(many, undisturbed, tmp_path, executor, workers, kills):
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    out, moments = tmp_path / "out", random.Random(f"{executor} {workers}")
    begun = time.monotonic()
    finished(Packing(many, tmp_path / "first", executor, workers))
    duration = time.monotonic() - begun
    assert same_files(undisturbed, tmp_path / "first")
    killed = sets = 0
    while killed < (KILLS or kills):
        packing = Packing(many, out, executor, workers)
        time.sleep(moments.uniform(0, duration))
        running = packing.process.poll() is None
        packing.kill()
        packing.result()
        if running:
            killed += 1
            assert_whole_or_absent(out, undisturbed)
            if executor == "ray":  # Ray ends the processes of a dead driver within seconds
                packing.wait_for_the_end_of_all(60)
        else:  # it had finished before
            assert same_files(undisturbed, out)
            shutil.rmtree(out)
            sets += 1
    finished(Packing(many, out, executor, workers))
    assert same_files(undisturbed, out)
    print(f"{executor}, {workers} workers: {killed} kills within {duration:.1f} s, {sets + 1} sets finished")


@pytest.mark.long
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_killed_while_it_compares_images_the_set_is_the_same(many, tmp_path, executor):
    """Each kill after a longer time, so that the scan and the packing are hit."""
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    out, flags = tmp_path / "out", ("--drop-duplicates", "near", "--drop-blank")
    begun = time.monotonic()
    finished(Packing(many, tmp_path / "first", executor, 2, *flags))
    duration = time.monotonic() - begun
    left_out = (tmp_path / "first" / "quarantine.jsonl").read_text()
    assert left_out.count("duplicate: the same content as ") == 400 - 40 - 9  # nine kinds, and 40 that are broken
    alone = tmp_path / "alone"
    pack(PackOptions(many, alone, workers=1, shard_size=SHARD_SIZE, drop_duplicates="near", drop_blank=True), False)
    assert same_files(alone, tmp_path / "first")
    for share in (0.3, 0.5, 0.7, 0.9):
        packing = Packing(many, out, executor, 2, *flags)
        time.sleep(share * duration)
        packing.kill()
        packing.result()
        if executor == "ray":
            packing.wait_for_the_end_of_all(60)
    finished(Packing(many, out, executor, 2, *flags))
    assert same_files(alone, out)


CRASHES = """
import os, signal, sys
from pathlib import Path
from shards import PackOptions, pack

src, out = map(Path, sys.argv[1:3])
CALLS = ("replace", "rename", "link", "fsync", "unlink", "remove", "rmdir", "mkdir")

def packed(die_at):
    count = 0
    def counting(name):
        real = getattr(os, name)
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    if die_at:
        for name in CALLS:
            setattr(os, name, counting(name))
    pack(PackOptions(src, out / str(die_at), workers=1, shard_size=8, limit=16), progress=False)

at = 0
while True:
    at += 1
    child = os.fork()
    if not child:
        packed(at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    print(at, flush=True)
"""


def test_killed_before_every_step_on_the_disk_the_set_is_the_same(folder, tmp_path):
    """A packing is ended before its first rename, sync, unlink, ..., another before its second one, and so on."""
    reference = tmp_path / "reference"
    pack(PackOptions(folder, reference, workers=1, shard_size=8, limit=16), progress=False)
    line = [sys.executable, "-c", CRASHES, str(folder), str(tmp_path)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True).stdout.split()
    assert len(ended) > 30
    for moment in ended:
        assert_whole_or_absent(tmp_path / moment, reference)
        pack(PackOptions(folder, tmp_path / moment, workers=1, shard_size=8, limit=16), progress=False)
        assert same_files(reference, tmp_path / moment), f"ended before step {moment}"


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_no_worker_outlives_its_parent(many, undisturbed, tmp_path, executor):
    """The parent alone is killed; its workers end by themselves."""
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    packing = Packing(many, tmp_path / "out", executor, 2, strike=struck(signal.SIGKILL, 1, group=False))
    assert packing.process.wait(300) == -signal.SIGKILL
    packing.wait_for_the_end_of_all(30 if executor == "local" else 90)
    if executor == "local":
        assert not list((tmp_path / "out").glob("shard-*.partial")), "they take their half-written files away"
    finished(Packing(many, tmp_path / "out", "local", 2))
    assert same_files(undisturbed, tmp_path / "out")


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_interrupted_by_the_keyboard_nothing_is_left_running_or_half_written(many, tmp_path, executor):
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    packing = Packing(many, tmp_path / "out", executor, 2, strike=struck(signal.SIGINT, 1))
    code, text = packing.result()
    assert code == 130, text
    assert "interrupted; run the same command again to continue" in text
    packing.wait_for_the_end_of_all(30)
    assert not list((tmp_path / "out").glob("shard-*.partial"))


def test_the_second_of_two_packers_is_refused_with_the_name_of_the_first(many, undisturbed, tmp_path):
    out = tmp_path / "out"
    first = Packing(many, out, "local", 2, strike=struck(signal.SIGSTOP, 1))
    assert os.WIFSTOPPED(os.waitpid(first.process.pid, os.WUNTRACED)[1])
    try:
        code, text = Packing(many, out, "local", 2).result()
    finally:
        first.kill(signal.SIGCONT)
    assert code == 2
    assert f"{out} is being packed by process {first.process.pid} on {os.uname().nodename}; wait for it" in text
    finished(first)
    assert same_files(undisturbed, out)


def test_of_several_packers_started_at_once_one_packs(many, undisturbed, tmp_path):
    packers = [Packing(many, tmp_path / "out", "local", 1) for _ in range(3)]
    results = [packer.result() for packer in packers]
    packed_by = [text for code, text in results if code == 0]
    refused = [text for code, text in results if code == 2]
    assert len(packed_by) + len(refused) == 3 and packed_by
    assert [text for text in refused if "is being packed by process" not in text] == []
    assert same_files(undisturbed, tmp_path / "out")


FULL = """
mount -t tmpfs -o size={size}k none '{mounted}' || exit 77
{line}
echo "code $?"
ls -R '{mounted}' > '{mounted}.ls'
mkdir '{mounted}.then' && cp '{mounted}'/out/* '{mounted}.then' 2> /dev/null
mount -o remount,size=50m '{mounted}'
{line} > /dev/null && cp -r '{mounted}/out' '{mounted}.end'
"""


def sizes_of_disks(reference: Path) -> Iterator[int]:
    """Kilobytes that are enough for nothing, for the plan, for some shards, for all but the manifest."""
    whole = sum(path.stat().st_size for path in reference.iterdir()) // 1024
    yield from (4, 24, whole // 3, whole - 100)


@pytest.mark.parametrize(
    ("executor", "workers"),
    [pytest.param("local", 1, marks=pytest.mark.long), ("local", 2), pytest.param("ray", 2, marks=pytest.mark.long)],
)
def test_a_full_disk_is_one_clear_error(folder, packed, tmp_path, executor, workers):
    """On a small file system: no file under a final name is half-written, and the rerun finishes."""
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    for size in sizes_of_disks(packed):
        mounted = tmp_path / str(size)
        mounted.mkdir()
        if executor == "ray" and size < 100:
            continue  # full before any worker starts: covered by the local executor
        flags = f"--shard-size 25 --executor {executor} --workers {workers}"
        line = f"{sys.executable} -m shards.cli --src '{folder}' --out '{mounted}/out' {flags}"
        script = FULL.format(size=size, mounted=mounted, line=line)
        shell = ["unshare", "-rm", "sh", "-c", script]
        result = subprocess.run(shell, capture_output=True, text=True, timeout=400, check=False)
        if result.returncode == 77 or "unshare" in result.stderr:
            pytest.skip("cannot mount a small file system here")
        assert "code 2" in result.stdout, result.stdout + result.stderr
        errors = [text for text in result.stderr.splitlines() if text.startswith("fastmoco-shard: ")]
        assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
        assert f"the disk of {mounted}/out is full" in errors[0] or "No space left on device" in errors[0]
        assert "run the same command again" in errors[0] or size < 8
        assert ".partial\n" not in Path(f"{mounted}.ls").read_text().replace("packing.partial\n", "")
        assert_whole_or_absent(Path(f"{mounted}.then"), packed)
        assert same_files(packed, Path(f"{mounted}.end"))
