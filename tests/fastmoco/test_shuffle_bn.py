from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_images_travel_and_features_come_back_in_order(torchrun, ranks):
    assert torchrun(ranks, SCRIPTS / "shuffle.py").stdout.strip() == "ok"
