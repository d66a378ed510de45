"""Files that are made to hurt their reader: one line each, and nothing is allocated, run or left unwritten."""

from __future__ import annotations

import re

import pytest
import torch

from fastmoco.checkpoints import checkpoint
from fastmoco.layouts.files import LayoutError
from fastmoco.layouts.files import read as read_weights
from tests.support.hostile import FILES, GOOD, VALUES


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, name):
    make, said = FILES[name]
    path = tmp_path / "step-00000001.pt"
    path.write_bytes(make())
    for read, refused in ((checkpoint.read, checkpoint.CheckpointError), (read_weights, LayoutError)):
        with pytest.raises(refused) as found:
            read(path)
        message = str(found.value)
        assert re.search(said, message) and message.startswith(str(path)), message
        assert len(message.splitlines()) == 1 and len(message) < 500


@pytest.mark.parametrize("name", GOOD)
def test_files_that_are_made_in_the_same_ways_are_read(tmp_path, name):
    path = tmp_path / "a.pt"
    path.write_bytes(GOOD[name]())
    assert torch.equal(checkpoint.read(path)["a"].flatten(), VALUES)
