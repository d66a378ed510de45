"""Encoders of timm's families, small ones, and the side of their images in tests."""

from __future__ import annotations

import pytest

FAMILIES = [
    ("timm:test_resnet", 32),
    ("timm:test_vit", 32),
    ("timm:test_convnext", 32),
    pytest.param("timm:test_byobnet", 32, marks=pytest.mark.long),
    pytest.param("timm:regnetx_002", 32, marks=pytest.mark.long),
    pytest.param("timm:convnext_atto", 32, marks=pytest.mark.long),
    pytest.param("timm:efficientnet_b0", 32, marks=pytest.mark.long),
    pytest.param("timm:vit_tiny_patch16_224", 64, marks=pytest.mark.long),
    pytest.param("timm:swin_tiny_patch4_window7_224", 56, marks=pytest.mark.long),
    pytest.param("moco_v3_vit_small", 64, marks=pytest.mark.long),
]
