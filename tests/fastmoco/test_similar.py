"""`fastmoco similar`: the images most similar to one, by its name in the set or by a file."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

import fastmoco
from fastmoco.embedding import Args, run
from fastmoco.features.search import features_of
from fastmoco.model import encoders
from fastmoco.similar import _embedded
from shards import ShardSet
from tests.support import features as support
from tests.support import weight_files, weight_table


@pytest.fixture(scope="module")
def written(shard_sets, tmp_path_factory):
    """Features of the 24 validation images by a narrow encoder, as the command writes them."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)
        encoder = weight_files.write(weight_files.encoder(1), folder / "encoder.pth")
        run(Args(str(encoder), str(shard_sets / "val"), out=str(folder / "features"), image_size=32, threads=1))
        yield folder / "features"


def test_similar_images_are_those_of_the_largest_cosine(shard_sets, photos, in_process, tmp_path):
    encoder = ("--checkpoint", "untrained", "--arch", "resnet10", "--image-size", 64, "--threads", 1)
    images = ("--images", shard_sets / "train", "--out", tmp_path / "features", "--index")
    in_process("-m", "fastmoco.embedding", *encoder, *images)
    found = fastmoco.load_embeddings(tmp_path / "features")
    unit = found.features / np.linalg.norm(found.features, axis=1, keepdims=True)
    order = np.argsort(-(unit @ unit[7]), kind="stable")
    assert order[0] == 7
    name, file = found.names[7], photos / "train" / found.names[7]
    given = ("-m", "fastmoco.similar", name, file, "--in", tmp_path / "features", "--k", 5)
    done = in_process(*given, "--json", tmp_path / "result.json")
    assert "searched by the index: all of 96 images" in done.stderr
    of_name, of_file = json.loads((tmp_path / "result.json").read_text())["results"]
    assert [match["id"] for match in of_name["similar"]] == order[1:6].tolist()  # not itself
    assert [match["id"] for match in of_file["similar"]] == order[:5].tolist()
    assert abs(of_file["similar"][0]["similarity"] - 1) < 1e-5
    first = of_name["similar"][0]
    assert first["similarity"] == pytest.approx(float(unit[order[1]] @ unit[7]), abs=1e-5)
    label = found.classes[found.labels[order[1]]]
    assert first["class_name"] == label and first["name"] == found.names[order[1]]
    lines = done.stdout.splitlines()
    assert lines[0] == name and lines[1] == f"  {first['similarity']:6.3f}  {first['name']}  ({label})"
    assert lines[7].startswith(f"   1.000  {name}") and len(lines) == 12


def test_a_file_is_normalised_as_the_features_were_also_if_the_encoders_file_does_not_say_how(
    shard_sets, photos, tmp_path, monkeypatch
):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", weight_table.NARROW)
    encoder = weight_files.write(weight_files.encoder(1), tmp_path / "encoder.pth")
    net, transform = fastmoco.load_encoder(encoder)
    transform = replace(transform, image_size=32, resize=40, mean=(0.1, 0.1, 0.1), std=(0.9, 0.9, 0.9))
    fastmoco.embed(shard_sets / "val", (net, transform), out=tmp_path / "features")
    with ShardSet(shard_sets / "val") as shard_set:
        (name,) = shard_set.names(np.array([5]))
    wanted = fastmoco.load_embeddings(tmp_path / "features").features[5]
    assert not np.allclose(fastmoco.embed([photos / "val" / name], encoder).features, wanted, rtol=0.01)
    found = _embedded([str(photos / "val" / name)], str(tmp_path / "features"), str(encoder))
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5)


def test_an_image_is_found_by_its_name_in_the_set_and_by_that_of_its_file(tmp_path):
    """A set spells out a line feed, and a file system may write an accent as a character of its own."""
    names = ["a/two\\nlines.jpg", unicodedata.normalize("NFC", "a/é.jpg"), unicodedata.normalize("NFD", "a/ä.jpg")]
    place = support.write_features(tmp_path / "features", "/set", np.eye(3, dtype=np.float32), names=names)
    for number, name in enumerate(names):
        forms = {name, *(unicodedata.normalize(form, name).replace("\\n", "\n") for form in ("NFC", "NFD"))}
        assert {form: sample for form, (sample, _) in features_of(place, forms).items()} == dict.fromkeys(forms, number)
    assert features_of(place, {"two\nlines.jpg"}) == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("nobody.jpg", "--in", "FEATURES"),
            "nobody.jpg is neither a file nor the name of an image in FEATURES, which has names like ",
        ),
        (
            ("--in", "FEATURES", "--", "--my cat.jpg"),
            "--my cat.jpg is neither a file nor the name of an image in FEATURES",
        ),
        (("FEATURES", "--in", "FEATURES"), "FEATURES is neither a file nor the name of an image in FEATURES"),
        (("a.jpg", "--in", "FEATURES", "--checkpoint", "EMPTY"), "--checkpoint: there is no file EMPTY"),
        (("a.jpg", "--in", "EMPTY"), "EMPTY has no embedding.json; fastmoco embed --out EMPTY writes one"),
        (("a.jpg", "--in", "FOLDER"), "FOLDER has no embedding.json; give the folder that fastmoco embed --out wrote"),
        (("a.jpg", "--in", "TEXT"), "TEXT is a file; give the folder that fastmoco embed --out wrote"),
        (("a.jpg", "--in", "FEATURES", "--k", "0"), "--k is 0; it must be at least 1"),
        (("TEXT", "--in", "FEATURES"), "cannot be used: not an image"),
        (("TEXT", "--in", "FEATURES", "--checkpoint", "OTHER"), "OTHER is not the encoder of FEATURES, or was trained"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_line(written, in_process, tmp_path, arguments, says):
    (tmp_path / "features").symlink_to(written)
    (tmp_path / "text").write_text("no image")
    weight_files.write(weight_files.encoder(2), tmp_path / "other.pth")
    places = {"FEATURES": "features", "EMPTY": "empty", "TEXT": "text", "OTHER": "other.pth", "FOLDER": ""}
    for word, place in places.items():
        arguments = [str(tmp_path / place) if argument == word else argument for argument in arguments]
        says = says.replace(word, str(tmp_path / place))
    done = in_process("-m", "fastmoco.similar", *arguments, check=False)
    assert done.returncode == 2 and says in done.stderr
