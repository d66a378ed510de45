"""Lists of web addresses: odd answers, passing faults, time limits, headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.storage import remote, retry
from shards.storage.store import open_place
from tests.support.faulty import KINDS, Faults, FaultyServer
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.serving import serving
from tests.support.web import WebServer, web_server

IMAGES = {f"{number}.jpg": jpeg(gradient(64, 60, seed=number)) for number in range(20)}


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server(IMAGES) as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "pauses", lambda retries: (0.05,) * retries)
    monkeypatch.setattr(retry, "_SLACK", 60.0)  # a busy machine takes a second for a few requests


def options(server: WebServer, tmp_path: Path, kinds: dict[int, str] | str, out: str = "out", **changes) -> PackOptions:
    """A packing of all images in shards of 5; `kinds` are those of some images, or of all."""
    of = kinds if isinstance(kinds, dict) else dict.fromkeys(range(20), kinds)
    urls = [f"{server.url}/{of.get(number, 'plain')}/{number}.jpg" for number in range(20)]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    return PackOptions(
        tmp_path / "list.txt", tmp_path / out, **{"workers": 1, "shard_size": 5, "retries": 3, **changes}
    )


def left_out(out: Path) -> list[tuple[str, str]]:
    """Path and cause of what is quarantined."""
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return sorted(("/".join(line["source"].split("/")[3:]), line["reason"]) for line in lines)


def test_answers_without_length_or_compressed_are_packed_and_requests_are_repeated(server, tmp_path):
    kinds = {1: "chunked", 2: "gzip", 3: "unsized", 4: "busy", 5: "chunked"}
    assert pack(options(server, tmp_path, kinds), progress=False).samples == 20
    with ShardSet(tmp_path / "out") as shard_set:
        assert sorted(shard_set.read(i) for i in range(20)) == sorted(IMAGES.values())
    assert server.requests["/busy/4.jpg"] == 3
    assert server.requests["/plain/0.jpg"] == 1, "one request for each image"


def test_faults_of_single_images_leave_them_out_with_the_cause(server, tmp_path):
    kinds = {1: "cut", 2: "404", 3: "410", 4: "403", 5: "451", 6: "empty", 7: "notgzip"}
    manifest = pack(options(server, tmp_path, kinds), progress=False)
    assert manifest.samples == 13
    size = len(IMAGES["1.jpg"])
    assert left_out(tmp_path / "out") == [
        ("403/4.jpg", "cannot read: HTTP 403 Forbidden"),
        ("404/2.jpg", "cannot read: HTTP 404 Not Found"),
        ("410/3.jpg", "cannot read: HTTP 410 Gone"),
        ("451/5.jpg", "cannot read: HTTP 451 Unavailable For Legal Reasons"),
        ("cut/1.jpg", f"cannot read: cut off: {size - 500:,} of {size:,} bytes"),
        ("empty/6.jpg", "empty: the file has 0 bytes"),
        ("notgzip/7.jpg", "cannot read: the body is not compressed as its Content-Encoding says"),
    ]
    assert server.requests["/404/2.jpg"] == 1, "asking again gives the same answer"


@pytest.mark.parametrize("workers", [1, 2])
def test_after_an_outage_the_same_command_gives_the_same_bytes(server, tmp_path, cli, workers):
    whole = options(server, tmp_path, "outage", out="whole")
    server.left = 10**6
    pack(whole, progress=False)
    server.left = 12
    line = ["--src", str(whole.src), "--out", str(tmp_path / "out"), "--shard-size", "5", "--workers", str(workers)]
    done = cli(*line, "--retries", "1")
    assert done.returncode == 2
    assert f"{server.url}/outage/" in done.stderr and "HTTP 503 Service Unavailable" in done.stderr
    assert "run the same command again" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").glob("quarantine.jsonl"))
    server.left = 10**6
    done = cli(*line, "--timeout", "7")  # another limit does not make it another set
    assert done.returncode == 0, done.stderr
    assert same_files(tmp_path / "whole", tmp_path / "out")
    assert left_out(tmp_path / "out") == []


def test_faults_at_random_change_nothing(server, tmp_path):
    whole = options(server, tmp_path, "plain", out="whole")
    pack(whole, progress=False)
    with serving(
        FaultyServer(Faults(seed=1, rate=0.8, stall=5.0), {f"/plain/{k}": v for k, v in IMAGES.items()})
    ) as faulty:
        (tmp_path / "list.txt").write_text(Path(whole.src).read_text().replace(server.url, faulty.url))
        again = replace(whole, out=tmp_path / "out", timeout=0.5)
        pack(again, progress=False)
        assert set(faulty.faults.counts) == set(KINDS)
    with ShardSet(tmp_path / "whole") as expected, ShardSet(tmp_path / "out") as found:
        # the port is part of the names, by which the images are ordered
        assert sorted(map(found.read, range(20))) == sorted(map(expected.read, range(20)))
    assert left_out(tmp_path / "out") == []


def test_a_server_that_is_gone_is_not_asked_for_every_image(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.packing.running._OUT_OF_REACH", 3)
    server.left = 0
    with pytest.raises(PackError, match=r"stopped at shard-.*HTTP 503 Service Unavailable; so did the 2 before it"):
        pack(options(server, tmp_path, "outage", shard_size=2), progress=False)
    # two images of each of three shards, of the first one with retries
    assert sum(server.requests.values()) <= 2 * (1 + 3) + 4


def test_images_out_of_reach_are_left_out_when_asked(server, tmp_path):
    some = {1: "500", 2: "503", 3: "404"}
    with pytest.raises(PackError, match=r"HTTP 50.*--unreachable leave-out"):
        pack(options(server, tmp_path, some), progress=False)
    pack(options(server, tmp_path, some, unreachable="leave-out"), progress=False)
    assert left_out(tmp_path / "out") == [
        ("404/3.jpg", "cannot read: HTTP 404 Not Found"),
        ("500/1.jpg", "out of reach: HTTP 500 Internal Server Error"),
        ("503/2.jpg", "out of reach: HTTP 503 Service Unavailable"),
    ]
    with pytest.raises(PackError, match="HTTP 500 Internal Server Error"):
        pack(options(server, tmp_path, "500", out="all", unreachable="leave-out"), progress=False)


@pytest.mark.parametrize("kind, cause", [("stall", "no data for 1 s"), ("slow", "the transfer took too long")])
def test_a_stalled_server_ends_within_the_limit_with_its_cause(server, tmp_path, monkeypatch, kind, cause):
    if kind == "slow":  # before two bytes can be too far apart
        monkeypatch.setattr("shards.storage.web._WHOLE", 0.5)
    packing = options(server, tmp_path, kind, timeout=1.0, retries=1, limit=1)
    with pytest.raises(PackError, match=rf"/{kind}/\d+.jpg: {cause}"):
        pack(packing, progress=False)


def test_a_server_that_refuses_connections_or_has_no_name(tmp_path):
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/1.jpg\n")
    with pytest.raises(PackError, match=r"http://127.0.0.1:9/1.jpg: Connection refused"):
        pack(PackOptions(tmp_path / "list.txt", tmp_path / "a", workers=1, retries=1), progress=False)
    (tmp_path / "list.txt").write_text("http://no-such-server.invalid/1.jpg\n")
    with pytest.raises(PackError, match=r"the name of the server cannot be resolved"):
        pack(PackOptions(tmp_path / "list.txt", tmp_path / "b", workers=1, retries=1), progress=False)


@pytest.mark.parametrize(
    "url, cause",
    [
        ("http://[bad/1.jpg", "not a valid address: "),
        ("http:///1.jpg", "not a valid address: it names no server"),
        ("http://127.0.0.1:99999/1.jpg", "not a valid address: "),
        ("SERVER/301/1.jpg", "HTTP 301 Moved Permanently"),
    ],
)
def test_addresses_that_lead_nowhere_are_left_out(server, tmp_path, url, cause):
    (tmp_path / "list.txt").write_text(f"{server.url}/plain/1.jpg\n{url.replace('SERVER', server.url)}\n")
    assert pack(PackOptions(tmp_path / "list.txt", tmp_path / "out", workers=1), progress=False).samples == 1
    [(_, reason)] = left_out(tmp_path / "out")
    assert reason.startswith(f"cannot read: {cause}")


def test_headers_are_sent_and_not_stored(server, tmp_path, cli):
    whole = options(server, tmp_path, "plain")
    line = ["--src", str(whole.src), "--out", str(tmp_path / "out"), "--workers", "2", "--shard-size", "10"]
    done = cli(*line, "--header", "Authorization: Bearer s3cret", "--header", "x-a: b:c", "--user-agent", "me/1 (mail)")
    assert done.returncode == 0, done.stderr
    for head in server.heads.values():
        assert (head["Authorization"], head["X-A"], head["User-Agent"]) == ("Bearer s3cret", "b:c", "me/1 (mail)")
    assert not [path for path in (tmp_path / "out").iterdir() if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in repr(options(server, tmp_path, "plain", headers=["Authorization: Bearer s3cret"]))
    done = cli(*line, "--header", "s3cret")
    assert done.returncode == 2 and "--header has to be 'NAME: VALUE'" in done.stderr and "s3cret" not in done.stderr
    pack(options(server, tmp_path, "plain", out="plain"), progress=False)
    assert server.heads["/plain/1.jpg"]["User-Agent"].startswith("fastmoco/")


def test_retry_after_reaches_all_threads(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(retry, "_OBEYED", 0.2)
    monkeypatch.setattr(retry.Host, "hold", lambda host, seconds: waits.append(seconds))
    server.retry_after = "3600"
    assert pack(options(server, tmp_path, {4: "busy"}), progress=False).samples == 20
    assert waits == [0.2, 0.2]


def test_lists_at_a_web_server_with_and_without_ranges(server, tmp_path):
    server.files = {"list.txt": "".join(f"../plain/{number}.jpg\n" for number in range(20)).encode(), **IMAGES}
    for kind in ("plain", "chunked", "gzip"):
        with open_place(f"{server.url}/{kind}/list.txt") as file:
            assert file.read() == server.files["list.txt"]
