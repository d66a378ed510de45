"""Appending to a set: what it holds stays, byte for byte, and what is added is the same however it was packed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from shards import PackError, PackOptions, ShardSet, pack
from shards.format.manifest import Manifest
from shards.format.parsing import parse_manifest
from shards.packing import appending
from shards.packing.preview import preview
from shards.storage.store import open_store
from tests.shards.conftest import MORE
from tests.support.folders import same_files
from tests.support.pictures import gradient, jpeg
from tests.support.sets import pack_set


@pytest.fixture
def base(packed, tmp_path):
    """A copy of the set of 120 images in five shards."""
    return shutil.copytree(packed, tmp_path / "set")


def test_old_shards_and_ids_stay_and_new_classes_get_the_next_labels(packed, more, appended, cli):
    assert all((appended / path.name).read_bytes() == path.read_bytes() for path in packed.glob("shard-*"))
    assert sorted(path.name for path in appended.glob("*.tar"))[5:] == [f"shard-00000{n}.tar" for n in (5, 6, 7)]
    with ShardSet(packed) as before, ShardSet(appended) as now:
        assert (len(before), len(now)) == (120, 144)
        assert now.classes == (*before.classes, "a new one", "z") == ("class 0", "class 1", "class 2", "a new one", "z")
        ids = np.arange(120)
        np.testing.assert_array_equal(now.rows(ids), before.rows(ids))
        assert [now.locate(i) for i in (0, 119)] == [before.locate(i) for i in (0, 119)]
        for sample, name in zip(range(120, 144), now.names(np.arange(120, 144)), strict=True):
            assert now.classes[now.labels(np.array([sample]))[0]] == name.split("/")[0]
            assert now.read(sample) == (more / name).read_bytes()
    done = cli("verify", appended, "--decode")
    assert (
        done.returncode == 0
        and done.stdout == "144 images in 8 shards: all as packed, and every image can be decoded\n"
    )
    said = cli("info", appended).stdout
    assert "appended   25 files" in said and "left out   1 (1 truncated)" in said


def test_the_bytes_do_not_depend_on_the_workers_and_a_repetition_changes_none(base, more, appended, cli):
    flags = ["--src", more, "--out", base, "--shard-size", 10, "--append"]
    said = cli(*flags, "--workers", 2).stdout
    assert "packed 24 images into 3 shards" in said and "left out 1 (1 truncated)" in said
    assert "appended to 120 images, as the ids 120 to 143; the set has 144 images in 8 shards" in said
    assert same_files(base, appended)
    again = cli(*flags).stdout
    assert "nothing was left to do" in again and "appended to 120 images, as the ids 120 to 143" in again
    assert same_files(base, appended)


def test_both_commands_repair_what_they_packed(base, folder, more, appended):
    shutil.copytree(appended, base, dirs_exist_ok=True)
    (base / "shard-000001.tar").unlink()
    pack_set(folder, base, shard_size=25)  # the first packing, of which the set has more by now
    assert same_files(base, appended)
    (base / "shard-000006.npy").unlink()
    pack_set(more, base, **MORE)
    assert same_files(base, appended)


@pytest.mark.parametrize("damage", ["missing", "cut off", "a damaged line"])
def test_both_commands_repair_the_list_of_what_was_left_out(base, folder, more, appended, tmp_path, damage):
    source = shutil.copytree(folder, tmp_path / "source")
    for number in range(2):
        (source / "class 0" / f"bad-{number}.jpg").write_bytes(b"no image")
    base = pack_set(source, tmp_path / "set with bad images", shard_size=25)
    pack_set(more, base, **MORE)
    file = base / "quarantine.jsonl"
    whole = file.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(first + second[:20] if damage == "cut off" else first + second + b"x" + third[1:])
    other = tmp_path / "other"
    other.mkdir()
    (other / "1.jpg").write_bytes(jpeg(gradient(60, 60, seed=3000)))
    if damage != "a damaged line":
        with pytest.raises(PackError, match="packed the set again, and those that appended to it, which repair it"):
            pack_set(other, base, **MORE)
    pack_set(source, base, shard_size=25)
    pack_set(more, base, **MORE)
    assert file.read_bytes() == whole
    pack_set(other, base, **MORE)
    assert file.read_bytes() == whole


def test_a_damaged_manifest_is_not_replaced_by_one_without_what_was_appended(base, folder, appended):
    shutil.copytree(appended, base, dirs_exist_ok=True)
    (base / "manifest.json").write_text("{")
    with pytest.raises(PackError, match="holds 3 tars of an unknown packing"):
        pack_set(folder, base, shard_size=25)
    assert (base / "manifest.json").read_text() == "{"


@pytest.mark.parametrize("moment", ["before the manifest", "after quarantine.jsonl", "some shards"])
def test_a_packing_that_was_killed_ends_with_the_same_bytes(base, more, appended, monkeypatch, moment):
    with monkeypatch.context() as patch:

        def killed(*_: object):
            raise KeyboardInterrupt

        if moment == "after quarantine.jsonl":
            patch.setattr(Manifest, "to_bytes", killed)
        else:
            patch.setattr(appending, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            pack_set(more, base, **MORE)
    if moment == "some shards":
        for path in base.glob("shard-000006.*"):
            path.unlink()
    assert (base / "packing.partial" / "plan.json").exists()
    with ShardSet(base) as readable:  # the set that it was
        assert len(readable) == 120
    pack_set(more, base, workers=2, **MORE)
    assert same_files(base, appended)


def test_what_another_packing_began_is_finished_first_or_given_up(base, more, folder, appended, monkeypatch, tmp_path):
    other = tmp_path / "other"
    for number in range(50):
        (other / "class 2").mkdir(parents=True, exist_ok=True)
        (other / "class 2" / f"{number}.jpg").write_bytes(jpeg(gradient(40, 40, seed=2000 + number)))
    with monkeypatch.context() as patch:
        patch.setattr(appending, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            pack_set(other, base, **MORE)
    with pytest.raises(
        PackError, match=r"other images are being appended to .* run that command again, which finishes"
    ):
        pack_set(more, base, **MORE)
    pack_set(folder, base, shard_size=25)  # a repair of the set forgets them
    pack_set(more, base, **MORE)
    assert same_files(base, appended)
    # of one class, which is a label as the set has classes
    pack_set(other, base, **MORE)
    with ShardSet(base) as now:
        assert (len(now), now.classes[2]) == (194, "class 2") and set(now.labels(np.arange(144, 194))) == {2}


def test_a_part_without_labels_is_repaired_without_labels(tmp_path):
    """When its single folder was appended the set had no classes, so that it was none; it has some by now."""
    for number, name in enumerate(("first/1.jpg", "one/x/2.jpg", "two/a/3.jpg", "two/b/4.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(gradient(60, 60, seed=4000 + number)))
    out = pack_set(tmp_path / "first", tmp_path / "set")
    for name in ("one", "two"):
        pack_set(tmp_path / name, out, append=True)
    whole = shutil.copytree(out, tmp_path / "whole")
    (out / "shard-000001.tar").unlink()
    pack_set(tmp_path / "one", out, append=True)
    assert same_files(out, whole)
    with ShardSet(out) as found:
        assert (found.classes, found.labels(np.arange(2)).tolist()) == (("a", "b"), [-1, -1])


def test_images_of_which_none_can_be_packed_are_given_up(base, more, appended, tmp_path):
    """They were still being appended after the error, although the same command could only fail again."""
    bad, before = tmp_path / "bad", sorted(path.name for path in base.iterdir())
    bad.mkdir()
    (bad / "1.jpg").write_bytes(b"no image")
    with pytest.raises(PackError, match="none of 1 image could be packed"):
        pack_set(bad, base, **MORE)
    assert sorted(path.name for path in base.iterdir()) == before
    pack_set(more, base, **MORE)
    assert same_files(base, appended)


def test_what_would_not_fit_is_refused(base, folder, more, tmp_path):
    for options, message in (
        ({"src": folder, "shard_size": 10}, "was packed from these images, so there is nothing to append"),
        ({"resize": 32}, "was packed in another way: --resize was not given, now 32; give the flags that it has"),
        ({"out": tmp_path / "none"}, "is no shard set to append to; pack the images without --append, which makes one"),
        ({"overwrite": True}, "--append keeps what --out holds, and --overwrite replaces it; leave one of them out"),
    ):
        given = {"src": more, "out": base, "workers": 1, "append": True} | options
        with pytest.raises(PackError, match=message):
            pack(PackOptions(**given), progress=False)
    assert not (tmp_path / "none").exists()
    pack_set(more, base, **MORE)
    with pytest.raises(PackError, match="holds these images already, appended otherwise: --limit was not given, now 5"):
        pack_set(more, base, limit=5, **MORE)
    with pytest.raises(PackError, match="unknown option append=True"):
        pack([jpeg(gradient(40, 40))], base, append=True)


def test_a_dry_run_says_what_would_be_appended_and_writes_nothing(base, packed, more):
    plan, lines = preview(PackOptions(more, base, dry_run=True, **MORE))
    assert (plan.first, plan.shards) == (5, 3)
    assert lines[0] == f"append to  {base}, 120 images"
    assert same_files(base, packed)


def test_the_manifest_of_the_set_before_is_found_by_its_digest(packed, appended):
    before, now = (parse_manifest((path / "manifest.json").read_bytes(), "") for path in (packed, appended))
    found = now.before(before.digest)
    assert found is not None and (found.samples, found.records, found.appended) == (120, before.records, ())
    assert now.before(now.digest) == now and now.before("0" * 64) is None
    with ShardSet(appended, digest=before.digest) as first:
        assert (len(first), first.digest) == (120, before.digest)


@pytest.mark.long
@pytest.mark.parametrize("killed", [False, True])
def test_a_set_in_a_store_is_appended_to_there(packed, more, appended, s3, monkeypatch, killed):
    store = open_store(s3)
    for path in sorted(packed.iterdir()):
        store.write(path.name, path.read_bytes())
    if killed:  # between quarantine.jsonl and the manifest
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "to_bytes", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                pack(PackOptions(more, s3, workers=1, **MORE), progress=False)
        with ShardSet(s3) as readable:
            assert len(readable) == 120
        store.remove("shard-000006.npy")
    pack(PackOptions(more, s3, workers=2 if killed else 1, **MORE), progress=False)
    assert {name: store.read(name) for name in store.names()} == {p.name: p.read_bytes() for p in appended.iterdir()}


def test_images_that_the_set_has_are_left_out_of_what_is_appended(base, folder, more, tmp_path):
    source = shutil.copytree(folder / "class 1", tmp_path / "source" / "class 1")
    (source / "new.jpg").write_bytes(jpeg(gradient(70, 64, seed=5000)))
    options = {"not_in": [str(base)], "drop_duplicates": "exact", **MORE}
    pack_set(source.parent, base, **options)
    with ShardSet(base) as now:
        assert (len(now), now.names(np.array([120]))) == (121, ["class 1/new.jpg"])
        assert now.manifest.quarantined == 40
        name = now.locate(120)[0].removesuffix(".tar")
    # the set holds them by now, and more
    pack_set(more, base, **MORE)
    whole = shutil.copytree(base, tmp_path / "whole")
    pack_set(source.parent, base, **options)
    assert same_files(base, whole)
    (base / f"{name}.tar").unlink()
    pack_set(source.parent, base, **options)
    assert same_files(base, whole)
