"""Tars read forwards: images written by webdataset, locally and over a network; errors name the damaged tar."""

from __future__ import annotations

import gzip
import http.server
import json
import tarfile
import threading
import time

import pytest

from shards import StreamError
from shards.foreign.streaming import count, expand, images
from shards.storage.store import open_store
from tests.support import pictures
from tests.support.tars import cut_off, member_places, write_tar

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def samples():
    """Keys and JPEG files."""
    return {f"{n:04d}": pictures.jpeg(pictures.gradient(40 + n, 30, seed=n)) for n in range(12)}


@pytest.fixture
def tar(tmp_path, samples):
    """A tar by webdataset's writer with captions, labels and metadata beside the images."""
    path = tmp_path / "photos-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for key, data in samples.items():
            writer.write({"__key__": key, "txt": "a caption", "jpg": data, "cls": 3, "json": {"key": key}})
    return path


def read(tar, **options):
    return {image.key: image.data for image in images(str(tar), delays=(0, 0), **options)}


def test_every_image_comes_once_in_order(tar, samples):
    found = list(images(str(tar)))
    assert [image.key for image in found] == list(samples)
    assert [image.place for image in found] == list(range(12))
    assert [image.data for image in found] == list(samples.values())


def test_other_names_and_formats(tmp_path):
    jpeg, png = pictures.jpeg(pictures.gradient()), pictures.encoded(pictures.gradient(), "PNG")
    path = tmp_path / "foreign.tar"
    names = {
        "a/b.JPG": jpeg, "a/b.txt": b"text", "c.png": png, "d.seg.png": png, "d.jpg": jpeg, "e.one.jpg": jpeg,
        "e.two.jpg": png, "._f.jpg": b"", "__meta__": b"x", "g.txt": b"no image", "noname": b"", "h.jpg": jpeg,
    }  # fmt: skip
    write_tar(path, {**names, "long/" * 30 + "i.jpg": jpeg}, tarfile.GNU_FORMAT)
    expected = {"a/b": jpeg, "c": png, "d": jpeg, "e.one": jpeg, "e.two": png, "h": jpeg, "long/" * 30 + "i": jpeg}
    assert read(path) == expected
    packed = tmp_path / "foreign.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == expected


def test_a_repeated_member_is_reported_and_left_out(tmp_path, samples, caplog):
    path = tmp_path / "twice.tar"
    write_tar(path, [("0.jpg", samples["0000"]), ("0.jpg", samples["0001"]), ("1.jpg", samples["0002"])])
    assert read(path) == {"0": samples["0000"], "1": samples["0002"]}
    assert "twice.tar/0.jpg is left out: duplicate: an earlier member has the same name" in caplog.text


@pytest.mark.parametrize("where", ["in an image", "in a header", "before a header", "at the end mark"])
def test_a_tar_that_breaks_off_is_named(tar, where):
    member = member_places(tar)["0007.jpg"]
    end = max(m.offset_data + -(-m.size // 512) * 512 for m in member_places(tar).values())
    place = {
        "in an image": member.offset_data + 300,
        "in a header": member.offset + 100,
        "before a header": member.offset,
        "at the end mark": end,
    }[where]
    cut_off(tar, place)
    given = []
    with pytest.raises(StreamError, match=r"photos-000\.tar cannot be read after its first \d+ images: truncated"):
        given.extend(images(str(tar)))


@pytest.mark.parametrize("name", ["0000.txt", "0005.jpg", "0011.json"])
def test_a_damaged_header_is_named(tar, name):
    member = member_places(tar)[name]
    data = bytearray(tar.read_bytes())
    header = member.offset_data - 512
    data[header + 150] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(StreamError, match=r"photos-000\.tar cannot be read"):
        list(images(str(tar)))


def test_data_behind_the_end_mark_that_are_no_tar_are_named(tar):
    tar.write_bytes(tar.read_bytes() + b"x" * 512)
    with pytest.raises(StreamError, match=r"no tar header at byte 122,880, and nothing after it"):
        list(images(str(tar)))


def test_what_is_no_tar_is_named(tmp_path):
    for content in (b"", b"<html>not found</html>" * 100):
        (tmp_path / "no.tar").write_bytes(content)
        with pytest.raises(StreamError, match=r"no\.tar cannot be read after its first 0 images"):
            list(images(str(tmp_path / "no.tar")))


def test_patterns(tmp_path, tar):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").touch()
    assert expand(f"{tmp_path}/{{a..b}}.tar::{tar}") == [*(f"{tmp_path}/{name}.tar" for name in "ab"), str(tar)]
    assert expand("s3://bucket/{098..100}.tar") == [f"s3://bucket/{n:03d}.tar" for n in (98, 99, 100)]
    with pytest.raises(StreamError, match=r"1 of the 3 tars .* do not exist, .*c\.tar is the first"):
        expand(f"{tmp_path}/{{a..c}}.tar")
    with pytest.raises(StreamError, match="twice"):
        expand(f"{tmp_path}/{{a,a}}.tar")
    with pytest.raises(StreamError, match=rf"{tmp_path} is a folder; .* as {tmp_path}/\{{00000\.\.00099\}}\.tar"):
        expand(str(tmp_path))


def test_images_are_counted_by_img2datasets_files(tmp_path):
    tars = [str(tmp_path / f"{n:05d}.tar") for n in range(3)]
    for n, tar in enumerate(tars):
        (tmp_path / f"{n:05d}_stats.json").write_text(json.dumps({"count": 9, "successes": 5 + n}))
        assert tar
    assert count(tars) == 18
    (tmp_path / "00001_stats.json").write_text("{}")
    with pytest.raises(StreamError, match=r"00001_stats\.json has no number"):
        count(tars)
    (tmp_path / "00001_stats.json").unlink()
    with pytest.raises(StreamError, match="--images-per-epoch"):
        count(tars)


def test_a_bucket(tar, samples, s3):
    open_store(s3).write(tar.name, tar.read_bytes())
    assert read(f"{s3}/{tar.name}") == samples
    with pytest.raises(StreamError, match=r"none\.tar cannot be read after its first 0 images"):
        read(f"{s3}/none.tar")


@pytest.fixture
def flaky(tar):
    """URL of the tar on a web server; where each next answer breaks off, and after how many images; these; requests."""
    pytest.importorskip("aiohttp")
    breaks, given, requests, data = [], [], [], tar.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self):
            requests.append(self.path)
            self.do_HEAD()
            end, seen = breaks.pop(0) if breaks else (len(data), 0)
            self.wfile.write(data[:end])
            deadline = time.monotonic() + 30
            while len(given) < seen and time.monotonic() < deadline:
                time.sleep(0.01)
            self.close_connection = True

        def log_message(self, format, *args): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{tar.name}", breaks, given, requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_that_drops_connections_is_asked_again(flaky, tar, samples):
    url, breaks, given, requests = flaky
    assert read(url) == samples
    within = {name: member.offset_data + 100 for name, member in member_places(tar).items()}
    # four breaks, but never three in a row without an image between
    breaks += [(within["0004.jpg"], 4), (700, 4), (within["0007.jpg"], 7), (within["0002.jpg"], 7)]
    for image in images(url, delays=(0, 0)):
        given.append(image)
    assert {image.key: image.data for image in given} == samples and len(given) == len(samples)
    assert [image.place for image in given] == list(range(12))
    assert not breaks and len(requests) == 1 + 5, "each break is one more request"


def test_a_connection_that_always_drops_ends_with_the_tars_name(flaky, tar):
    url, breaks, given, _ = flaky
    breaks += [(member_places(tar)["0004.jpg"].offset_data + 100, 4)] * 10
    with pytest.raises(StreamError, match=rf"{url} cannot be read after its first 4 images"):
        for image in images(url, delays=(0, 0)):
            given.append(image)
    assert len(breaks) == 7
    with pytest.raises(StreamError, match=r"none\.tar cannot be read after its first 0 images: .*refused"):
        read("http://127.0.0.1:9/none.tar")
