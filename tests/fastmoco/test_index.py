"""The index of features: what it finds, and when it is used."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from fastmoco.features.index import build, open_index
from fastmoco.features.parts import EmbeddingError, about_of
from fastmoco.features.search import most_similar
from tests.support.features import features, write_features

pytest.importorskip("faiss")


@pytest.fixture
def written(tmp_path):
    """Features of 96 images in three parts."""
    return write_features(tmp_path / "features", "/set", features(96)[0], labels=np.arange(96) % 3, classes=list("abc"))


def test_an_index_of_all_images_finds_what_comparing_them_finds(written):
    about = about_of(written)
    assert open_index(written, about) == (None, "")
    record = build(written, about)
    assert (record["rows"], record["part_rows"], record["recall"]) == (96, [40, 40, 16], 1.0)
    index, reason = open_index(written, about)
    assert reason == "" and index is not None and index.in_words == "all of 96 images"
    queries = np.random.default_rng(1).normal(size=(5, 8))
    found, expected = index.most_similar(written, queries, 7), most_similar(written, queries, 7)
    for matches, others in zip(found, expected, strict=True):
        assert [(one.id, one.name, one.class_name) for one in matches] == [
            (one.id, one.name, one.class_name) for one in others
        ]
        assert [one.similarity for one in matches] == pytest.approx([one.similarity for one in others], abs=1e-6)
    assert len(index.most_similar(written, queries[:1], 1000)[0]) == 96
    with pytest.raises(EmbeddingError, match="have dimension 8, those asked for 3"):
        index.most_similar(written, queries[:, :3], 1)


def test_an_index_of_lists_has_the_recall_that_it_says(tmp_path):
    generator = np.random.default_rng(0)
    made = generator.normal(size=(60, 16))[generator.integers(0, 60, 4000)] * 2 + generator.normal(size=(4000, 16))
    place = write_features(tmp_path / "features", "/set", made.astype(np.float32), part_size=1500)
    record = build(place, about_of(place), flat=1000)
    assert record["lists"] == 256 and 4 <= record["probed"] < 256 and 0.95 <= record["recall"] < 1
    index, _ = open_index(place, about_of(place))
    assert index is not None
    assert index.in_words.startswith(f"{record['probed']} of 256 lists, which hold 9")
    unit = made / np.linalg.norm(made, axis=1, keepdims=True)
    queries = np.unique(np.linspace(0, 3999, 200).round().astype(int))  # those that the record's figure is of
    cosine = unit[queries] @ unit.T
    cosine[np.arange(200), queries] = -2
    nearest = np.argsort(-cosine, axis=1)[:, :10]
    found = index.most_similar(place, unit[queries], 11)
    hits = [len(set(near) & {one.id for one in matches}) for near, matches in zip(nearest.tolist(), found, strict=True)]
    assert sum(hits) / 2000 == pytest.approx(record["recall"], abs=0.002)  # features of half precision tie differently
    first = found[0][1]
    assert first.similarity == pytest.approx(float(unit[first.id] @ unit[queries[0]]), abs=1e-3)  # half precision
    assert first.name == f"folder/{first.id}.jpg"


def test_an_index_is_used_while_it_fits_and_the_command_says_so(written, in_process, monkeypatch):
    def similar(*flags, check=True):
        given = ("-m", "fastmoco.similar", "folder/7.jpg", "--in", written, "--k", 3)
        return in_process(*given, *flags, check=check)

    expected = similar().stdout
    assert expected.splitlines()[0] == "folder/7.jpg" and len(expected.splitlines()) == 4
    build(written, about_of(written))
    before = (written / "index.faiss").stat().st_mtime_ns
    done = similar()
    assert done.stdout == expected and "searched by the index: all of 96 images" in done.stderr
    assert "index" not in similar("--exact").stderr
    build(written, about_of(written))
    assert (written / "index.faiss").stat().st_mtime_ns == before  # it is there already
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faiss", None)
        done = similar()
    assert done.stdout == expected and "all images are compared: the index in" in done.stderr
    assert "pip install 'fastmoco[faiss]'" in done.stderr
    whole = (written / "index.faiss").read_bytes()
    for damaged in (whole[:-9], b"x" * len(whole)):
        (written / "index.faiss").write_bytes(damaged)
        done = similar(check=False)
        assert done.returncode != 0 and "index.faiss is damaged; remove it, and run the same" in done.stderr
    (written / "index.faiss").unlink()
    done = similar(check=False)
    assert done.returncode == 2 and "index.faiss is missing; run the same fastmoco embed command with" in done.stderr
    build(written, about_of(written))
    assert (written / "index.faiss").read_bytes() == whole
    about = json.loads((written / "embedding.json").read_text())
    (written / "embedding.json").write_text(json.dumps(about | {"encoder": "cd"}))
    done = similar()
    assert done.stdout == expected and f"all images are compared: the index in {written} is of other" in done.stderr
    build(written, about_of(written))
    assert "searched by the index" in similar().stderr
