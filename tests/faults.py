"""Servers with faults at random, during packing and training: bytes and losses are those without faults.

usage: python tests/faults.py [--seed N] [--outage SECONDS] [--stall SECONDS]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from shards.storage.store import open_store
from tests.support.faulty import Faults, FaultyServer
from tests.support.folders import same_files
from tests.support.runs import metrics
from tests.support.s3 import served_bucket
from tests.support.serving import serving
from tests.support.tars import write_tar

RUN = Callable[..., Any]
"""Runs a command: `RUN("-m", "shards.cli", ...)`."""
PACK = ("-m", "shards.cli", "--shard-size", 16, "--workers", 1, "--timeout", 5)
TRAIN = ("-m", "fastmoco.train", "--recipe", "demo", "--image-size", 32, "--batch-size", 16, "--queue-size", 40)
TARS = 12
STEPS = ("--log-every", 1, "--threads", 2, "--steps", 12)


class Trial:
    """Runs each command twice, without faults and with them, and compares what it made.

    Args:
        work: Folder for everything.
        run: Runs a command.
        seed: Of the faults.
        outage: Seconds for which the server is gone.
        stall: Seconds for which a stalled answer stays open.
    """

    def __init__(self, work: Path, run: RUN, seed: int, outage: float, stall: float) -> None:
        self.work, self.run, self.seed, self.outage, self.stall = work, run, seed, outage, stall
        self.credentials = work / "credentials"

    def use_file_of_credentials(self) -> None:
        """Let S3's clients take the key from a file, in which it can be replaced."""
        self.write_key("key")
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(self.credentials)
        del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]

    def write_key(self, key: str) -> None:
        """Replace the access key."""
        self.credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    @contextmanager
    def faulty(self, server: FaultyServer, what: str, after: int, rate: float = 0.1) -> Iterator[Faults]:
        """Give a server faults, with an outage after some requests; then keys expire, if it is S3's."""
        faults = server.faults = Faults(self.seed, rate=rate, stall=self.stall)
        faults.outage(self.outage, after)
        ended = threading.Event()

        def expire() -> None:
            while faults.requests < 2 * after:
                if ended.wait(0.005):
                    return
            faults.expire("key")
            time.sleep(1)
            self.write_key("renewed")

        thread = threading.Thread(target=expire if server.upstream else lambda: None)
        thread.start()
        start = time.monotonic()
        yield faults
        ended.set()
        thread.join()
        server.faults = Faults()
        self.write_key("key")
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.counts.items()))
        seconds = time.monotonic() - start
        print(f"{what}: seed {self.seed}, {faults.requests} requests, {seconds:.0f} s; {counts}: the same", flush=True)

    def packing_from_the_web(self, photos: Path) -> None:
        """A list of URLs becomes a local set."""
        files = {f"/{path.parent.name}-{path.name}": path.read_bytes() for path in sorted(photos.rglob("*.jpg"))}
        with serving(FaultyServer(Faults(), files)) as server:
            (self.work / "list.txt").write_text("".join(f"{server.url}{name}\n" for name in files))
            pack = (*PACK, "--src", self.work / "list.txt", "--out")
            self.run(*pack, self.work / "web")
            with self.faulty(server, "packing a list of URLs", after=30):
                self.run(*pack, self.work / "web with faults")
                assert same_files(self.work / "web", self.work / "web with faults")
                assert not (self.work / "web" / "quarantine.jsonl").read_text()

    def packing_in_s3(self, server: FaultyServer, photos: Path) -> None:
        """A folder in a bucket becomes a set in the bucket."""
        store = open_store("s3://bucket")
        for path in sorted(photos.rglob("*.jpg")):
            store.write(f"photos/{path.parent.name}/{path.name}", path.read_bytes())
        pack = (*PACK, "--src", "s3://bucket/photos", "--out")
        self.run(*pack, "s3://bucket/set")
        with self.faulty(server, "packing from S3 to S3", after=40):
            self.run(*pack, "s3://bucket/set-with-faults")
            sets = [open_store(f"s3://bucket/{name}") for name in ("set", "set-with-faults")]
            first, second = ({name: store.read(name) for name in store.names()} for store in sets)
            assert first == second and not first["quarantine.jsonl"]

    def training_on_a_set(self, server: FaultyServer) -> None:
        """Training on the set in the bucket, image by image."""
        os.environ["FASTMOCO_CACHE"], os.environ["FASTMOCO_CACHE_BYTES"] = str(self.work / "cache"), "1"
        self._train("training on a set in S3", server, 60, "--shards", "s3://bucket/set")

    def training_on_streams(self, server: FaultyServer, photos: Path) -> None:
        """Training on tars, on a web server and in the bucket."""
        files = sorted(photos.rglob("*.jpg"))
        tars: dict[str, bytes] = {}
        for number in range(TARS):
            members = {f"{path.parent.name}{path.stem}.jpg": path.read_bytes() for path in files[number::TARS]}
            tars[f"/{number}.tar"] = write_tar(self.work / f"{number}.tar", members).read_bytes()
            open_store("s3://bucket").write(f"tars/{number}.tar", tars[f"/{number}.tar"])
        stream = ("--images-per-epoch", len(files), "--shuffle-buffer", 20, "--stream")
        names = f"{{0..{TARS - 1}}}.tar"
        # a tar is one request or a few: at the usual rate hardly one would fail
        with serving(FaultyServer(Faults(), tars)) as web:
            self._train("training on a stream from the web", web, 8, *stream, f"{web.url}/{names}", rate=0.4)
        self._train("training on a stream from S3", server, 10, *stream, f"s3://bucket/tars/{names}", rate=0.4)

    def _train(self, what: str, server: FaultyServer, after: int, *flags: object, rate: float = 0.1) -> None:
        outs = [self.work / "runs" / f"{what}{end}" for end in ("", " with faults")]
        self.run(*TRAIN, *STEPS, *flags, "--out", outs[0])
        with self.faulty(server, what, after, rate):
            self.run(*TRAIN, *STEPS, *flags, "--out", outs[1])
            plain, faulty = ([record["loss"] for record in metrics(out) if "loss" in record] for out in outs)
            assert len(plain) == 12 and plain == faulty, f"{plain}\n{faulty}"
            assert not any((out / "quarantine.jsonl").exists() for out in outs)


def run_command(*arguments: object) -> None:
    """Run a command in a process of its own, and again where it says that this continues it."""
    for _ in range(3):
        done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=1800)
        if done.returncode == 0:
            return
        print("  " + done.stderr.splitlines()[-1], flush=True)
        if "run the same command again" not in done.stderr:
            break
    raise AssertionError(f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def main() -> None:
    """All parts, in full."""
    from fastmoco.demo.made import make_images

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outage", type=float, default=30.0)
    parser.add_argument("--stall", type=float, default=40.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served_bucket() as server, pytest.MonkeyPatch.context() as patch:
        work = Path(folder)
        patch.setenv("TMPDIR", folder)
        make_images(work / "photos", classes=4, per_class=24, size=64, seed=0)
        trial = Trial(work, run_command, args.seed, args.outage, args.stall)
        trial.use_file_of_credentials()
        trial.packing_from_the_web(work / "photos")
        trial.packing_in_s3(server, work / "photos")
        trial.training_on_a_set(server)
        trial.training_on_streams(server, work / "photos")


if __name__ == "__main__":
    main()
