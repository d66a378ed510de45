"""The lock of an output: a packer that starts as another starts or ends is refused with its name, or packs."""

from __future__ import annotations

import fcntl
import threading
import time

import pytest

from shards.packing.lock import HeldError
from shards.packing.output import finish, held
from shards.packing.plan import WORK
from shards.storage import locking
from shards.storage.store import open_store


def test_a_folder_that_another_packer_removes_as_it_ends_is_made_again(tmp_path):
    taken, errors = [0, 0], []

    def pack(number):
        store = open_store(str(tmp_path))
        for _ in range(300):
            try:
                with held(store):
                    taken[number] += 1
                    (tmp_path / WORK / "plan.json").touch(exist_ok=False)  # of nobody else
                    finish(store)
            except HeldError:
                pass
            except Exception as error:
                errors.append(error)

    packers = [threading.Thread(target=pack, args=[number]) for number in range(2)]
    for packer in packers:
        packer.start()
    for packer in packers:
        packer.join()
    assert not errors and min(taken) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def write():
            time.sleep(0.05)
            file.write("process 7 on there\n")
            file.flush()

        writer = threading.Thread(target=write)
        writer.start()
        with pytest.raises(locking.Held, match=r"^process 7 on there$"), locking.locked(path, "this"):
            pass
        writer.join()
