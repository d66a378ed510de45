"""A short version of tests/faults.py: packing and training with servers that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import Trial
from tests.support.commands import InProcess


@pytest.mark.long
def test_faults_at_random_change_neither_bytes_nor_losses(
    photos: Path, s3_server, s3: str, tmp_path: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "FASTMOCO_CACHE_BYTES"):
        monkeypatch.setenv(name, "restored when the test ends")
    trial = Trial(tmp_path, in_process, seed=0, outage=1.5, stall=0.5)
    trial.use_file_of_credentials()
    trial.packing_from_the_web(photos / "train")
    trial.packing_in_s3(s3_server, photos / "train")
    trial.training_on_a_set(s3_server)
