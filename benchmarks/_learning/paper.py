"""Results that the papers report for these experiments: linear top-1 on ImageNet-1M in percent, each with its source.

A number is included only if notes or translations that quote the paper's text or tables confirm it. Points of Figure 3
that neither text nor tables repeat are omitted.
"""

from __future__ import annotations

from dataclasses import dataclass

V1, V2 = "arXiv 1911.05722", "arXiv 2003.04297"


@dataclass(frozen=True)
class Reported:
    """A published figure.

    Attributes:
        series: as `Variant.series`.
        at: position on the x axis.
        top1: linear top-1 in percent; None if the paper reports that training fails.
        source: paper and place.
    """

    series: str
    at: str
    top1: float | None
    source: str


_ABLATION = f"{V1}, section 4.1, ablation of the momentum"
_MECHANISMS = f"{V1}, section 4.1, ablation of the mechanisms"
_TABLE = f"{V1}, table 1"
_PIECES = f"{V2}, table 1"

REPORTED: dict[str, tuple[Reported, ...]] = {
    "momentum": (
        Reported("MoCo", "0", None, _ABLATION),
        Reported("MoCo", "0.9", 55.2, _ABLATION),
        Reported("MoCo", "0.99", 57.8, _ABLATION),
        Reported("MoCo", "0.999", 59.0, _ABLATION),
        Reported("MoCo", "0.9999", 58.9, _ABLATION),
    ),
    "mechanisms": (
        Reported("MoCo", "4,096", 59.0, _ABLATION),
        Reported("MoCo", "65,536", 60.6, _TABLE),
        Reported("memory bank", "65,536", 58.0, _MECHANISMS),
    ),
    "encoders": (
        Reported("MoCo", "resnet50", 60.6, _TABLE),
        Reported("MoCo", "resnext50_32x8d", 63.9, _TABLE),
        Reported("MoCo", "resnet50_w2", 65.4, _TABLE),
        Reported("MoCo", "resnet50_w4", 68.6, _TABLE),
    ),
    "pieces": (
        Reported("MoCo", "v1", 60.6, _PIECES),
        Reported("MoCo", "MLP", 66.2, _PIECES),
        Reported("MoCo", "aug+", 63.4, _PIECES),
        Reported("MoCo", "MLP, aug+", 67.3, _PIECES),
        Reported("MoCo", "v2", 67.5, _PIECES),
    ),
    "baselines": (
        Reported("linear", "MoCo", 60.6, _TABLE),
        Reported("linear", "supervised", 76.5, _PIECES),
    ),
}
"""By experiment."""
