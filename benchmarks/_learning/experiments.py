"""The experiments of `learning.py` as data: the flags of every variant, at both scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Flags = tuple[str, ...]
Scale = Literal["small", "imagenet"]
Kind = Literal["moco", "supervised", "untrained"]
Loader = Literal["fastmoco", "original"]


@dataclass(frozen=True)
class Variant:
    """One alternative of an experiment.

    Attributes:
        flags: flags of `fastmoco train`; the supervised trainer reads the same ones.
        series: its line in the chart.
        at: its position on the chart's x axis.
        kind: how the encoder is trained: by MoCo, by labels, or not at all.
        loader: what makes the views: fastmoco from shards, or the original's loader from a folder (`original`).
    """

    flags: Flags
    series: str
    at: str
    kind: Kind = "moco"
    loader: Loader = "fastmoco"


@dataclass(frozen=True)
class Experiment:
    """The variants to compare, and how to show them.

    Attributes:
        title: title of the chart.
        x_name: name of the chart's x axis.
        variants: variants by scale and name.
        linear: flags of the linear probes by scale and probe; None for kNN only.
        lines: whether the x axis is ordered, so that lines may join the points.
        by_epoch: whether table and chart show the accuracy after each probed epoch; otherwise that at the end.
        difference: two variants whose difference, first minus second, the table states seed by seed.
        starts: whether the chart has the accuracies of each encoder before training, not their mean.
        compared: whether each encoder is compared with itself before training by all probes, and with what timm makes
            of its export.
    """

    title: str
    x_name: str
    variants: Mapping[Scale, Mapping[str, Variant]]
    linear: Mapping[Scale, Mapping[str, Flags]] | None = None
    lines: bool = False
    by_epoch: bool = False
    difference: tuple[str, str] | None = None
    starts: bool = False
    compared: bool = False


PHOTOS = (
    *("--recipe", "moco-v2", "--arch", "resnet18", "--image-size", "64", "--batch-size", "128"),
    *("--queue-size", "2048", "--momentum-key", "0.99", "--temperature", "0.1", "--lr", "0.06"),
    *("--weight-decay", "5e-4"),
)
"""Settings for a few thousand photographs on two CPU cores, without the length of the run."""
SMALL_PHOTOS = (*PHOTOS, "--epochs", "30", "--knn-every", "5")
"""The same for half an hour to an hour per run."""
# --zero-init-residual, because short runs with small batches otherwise lose their first epochs (docs/training.md,
# recipes)
SMALL = (
    *("--recipe", "moco-v2", "--arch", "resnet10", "--image-size", "32", "--augmentation", "v1", "--batch-size", "64"),
    *("--queue-size", "1024", "--momentum-key", "0.999", "--temperature", "0.2", "--base-lr", "0.015"),
    *("--base-batch-size", "64", "--weight-decay", "1e-4", "--epochs", "8", "--zero-init-residual"),
    *("--precision", "fp32", "--knn-every", "1000"),
)
"""Settings for a few thousand small images on one CPU core: a minute per run. Probed before and after training.

The learning rate is low and m high for so few steps: with 0.06 and 0.99 the loss rose again as the rate fell. Until
then the encoder had distinguished keys by their age in the queue.
"""
FAMILY = (
    *("--recipe", "moco-v2", "--batch-size", "128", "--queue-size", "2048", "--momentum-key", "0.99"),
    *("--temperature", "0.1", "--epochs", "6", "--knn-every", "1000"),
)
"""Settings of all families: minutes per run on one CPU core. Probed before and after training."""
SGD = ("--lr", "0.06", "--weight-decay", "5e-4")
ADAMW = ("--optimiser", "adamw", "--weight-decay", "0.05", "--schedule", "warmup-cosine", "--warmup", "0.1")
"""As MoCo v3 trains its transformers (arXiv 2104.02057, section 4)."""
TRANSFORMER = (*ADAMW, "--lr", "5e-4")
FAMILIES: dict[str, Flags] = {
    "resnet": ("--arch", "timm:resnet10t", "--image-size", "64", *SGD),
    "regnet": ("--arch", "timm:regnetx_002", "--image-size", "64", *SGD),
    # by SGD, its features collapsed in the first epoch; after six epochs its gain by kNN was within chance
    "efficientnet": ("--arch", "timm:efficientnet_b0", "--image-size", "64", *ADAMW, "--lr", "1e-3", "--epochs", "20"),
    "convnext": ("--arch", "timm:convnext_atto", "--image-size", "64", *ADAMW, "--lr", "1e-3"),
    # transformers learn later
    "vit": ("--arch", "timm:vit_tiny_patch16_224", "--image-size", "64", *TRANSFORMER, "--epochs", "30"),
    "swin": ("--arch", "timm:swin_tiny_patch4_window7_224", "--image-size", "56", *TRANSFORMER, "--epochs", "12"),
}
"""A small encoder of each of timm's large families, at sizes that its patches and windows allow."""
IMAGENET = ("--recipe", "moco-v1", "--knn-every", "20")
"""The paper's settings (arXiv 1911.05722, section 4): ResNet-50, 200 epochs, batch 256, K 65,536."""
BASES: dict[Scale, Flags] = {"small": SMALL, "imagenet": IMAGENET}
PROBES: dict[Scale, dict[str, Flags]] = {
    "small": {
        # batches of 64, for small sets: of 256, up to 255 images would be left out of every epoch
        "linear": ("--lr", "0.3", "1", "3", "10", "30", "--epochs", "10", "--batch-size", "64"),
        # on small images a random crop shows little, so the full probe can end below kNN (Fashion-MNIST does)
        "fast": ("--fast", "--lr", "0.01", "0.03", "0.1", "0.3", "1", "3", "--epochs", "30", "--batch-size", "64"),
    },
    "imagenet": {"linear": ("--lr", "30")},
}
"""Flags of the linear probes, on random crops and on features computed once; the paper's is the former."""
SUPERVISED: dict[Scale, Flags] = {
    "small": ("--base-lr", "0.05", "--base-batch-size", "64", "--schedule", "cosine"),
    "imagenet": ("--base-lr", "0.1", "--base-batch-size", "256", "--epochs", "90"),
}
"""Flags of supervised training that replace MoCo's."""
MECHANISMS = {"queue": "MoCo", "end-to-end": "end-to-end", "memory-bank": "memory bank"}
SIZES: dict[Scale, dict[str, tuple[int, ...]]] = {
    "small": {"queue": (64, 256, 1024), "end-to-end": (64, 256), "memory-bank": (64, 256, 1024)},
    "imagenet": {
        "queue": (256, 512, 1024, 4096, 16384, 65536),
        "end-to-end": (256, 512, 1024),
        "memory-bank": (256, 512, 1024, 4096, 16384, 65536),
    },
}
"""Dictionary sizes of each mechanism; for end-to-end the batch size, up to the limit of the paper's machine."""
# those of the ablation in arXiv 1911.05722, section 4.1
MOMENTA = ("0", "0.9", "0.99", "0.999", "0.9999")
# at ImageNet's scale those of table 1 of arXiv 1911.05722
ENCODERS: dict[Scale, tuple[str, ...]] = {
    "small": ("resnet10", "resnet18", "resnet34"),
    "imagenet": ("resnet50", "resnext50_32x8d", "resnet50_w2", "resnet50_w4"),
}
V1 = ("--head", "linear", "--augmentation", "v1", "--schedule", "step", "--temperature", "0.07")
PIECES: dict[str, Flags] = {
    "v1": V1,
    "MLP": (*V1, "--head", "mlp", "--temperature", "0.2"),
    "aug+": (*V1, "--augmentation", "v2"),
    "MLP, aug+": (*V1, "--head", "mlp", "--temperature", "0.2", "--augmentation", "v2"),
    "v2": (*V1, "--head", "mlp", "--temperature", "0.2", "--augmentation", "v2", "--schedule", "cosine"),
}
"""From v1 to v2 (arXiv 2003.04297, table 1); as there, an MLP head comes with a temperature of 0.2."""


def _small_photos() -> dict[str, Variant]:
    more: dict[str, Flags] = {
        "papers": (), "bn-splits-8": ("--bn-splits", "8"), "warmup": ("--warmup", "0.1"),
        "zero-init": ("--zero-init-residual",),
    }  # fmt: skip
    return {name: Variant((*SMALL_PHOTOS, *flags), "MoCo", name) for name, flags in more.items()}


def _data_paths() -> dict[str, Variant]:
    # all settings are the same, so that only the views' loader differs; in the precision of the original's code
    flags = (*SMALL_PHOTOS, "--pipeline", "torch", "--precision", "fp32")
    loaders: tuple[Loader, ...] = ("fastmoco", "original")
    return {loader: Variant(flags, loader, loader, loader=loader) for loader in loaders}


def _mechanisms(scale: Scale) -> dict[str, Variant]:
    found = {}
    for mechanism, sizes in SIZES[scale].items():
        for size in sizes:
            # an end-to-end dictionary is the batch, so its size cannot be set by itself
            name = "--batch-size" if mechanism == "end-to-end" else "--queue-size"
            flags = (*BASES[scale], "--mechanism", mechanism, name, str(size))
            found[f"{mechanism}-{size}"] = Variant(flags, MECHANISMS[mechanism], f"{size:,}")
    return found


def _momentum(scale: Scale) -> dict[str, Variant]:
    # the K of the paper's ablation (section 4.1); 65,536 is its default elsewhere
    size = ("--queue-size", "4096") if scale == "imagenet" else ("--queue-size", "2048")
    return {f"m-{value}": Variant((*BASES[scale], *size, "--momentum-key", value), "MoCo", value) for value in MOMENTA}


def _encoders(scale: Scale) -> dict[str, Variant]:
    return {arch: Variant((*BASES[scale], "--arch", arch), "MoCo", arch) for arch in ENCODERS[scale]}


def _queue_dtypes(scale: Scale) -> dict[str, Variant]:
    flags = {dtype: (*BASES[scale], "--queue-dtype", dtype) for dtype in ("float32", "bfloat16")}
    return {dtype: Variant(more, "MoCo", dtype) for dtype, more in flags.items()}


def _pieces(scale: Scale) -> dict[str, Variant]:
    return {
        name.lower().replace(", ", "-").replace("+", "-plus"): Variant((*BASES[scale], *flags), "MoCo", name)
        for name, flags in PIECES.items()
    }


def _baselines(scale: Scale) -> dict[str, Variant]:
    base = BASES[scale]
    return {
        "untrained": Variant(base, "kNN", "untrained", "untrained"),
        "moco": Variant(base, "kNN", "MoCo"),
        "supervised": Variant((*base, *SUPERVISED[scale]), "kNN", "supervised", "supervised"),
    }


def _families() -> dict[str, Variant]:
    return {name: Variant((*FAMILY, *flags), "MoCo", name) for name, flags in FAMILIES.items()}


def _both(make: Callable[[Scale], dict[str, Variant]]) -> dict[Scale, dict[str, Variant]]:
    return {"small": make("small"), "imagenet": make("imagenet")}


EXPERIMENTS: dict[str, Experiment] = {
    "small-photos": Experiment("Settings for few photographs", "epoch", {"small": _small_photos()}, by_epoch=True),
    "data-paths": Experiment(
        "fastmoco's data path and the original's",
        "epoch",
        {"small": _data_paths()},
        by_epoch=True,
        difference=("fastmoco", "original"),
    ),
    "mechanisms": Experiment("Mechanism and size of the dictionary", "K", _both(_mechanisms), lines=True),
    "momentum": Experiment("Momentum of the key encoder", "m", _both(_momentum), lines=True),
    "queue-dtypes": Experiment("Precision of the queue's keys", "keys in", _both(_queue_dtypes)),
    "encoders": Experiment("Encoders", "", _both(_encoders), linear=PROBES),
    "pieces": Experiment("From v1 to v2", "", _both(_pieces)),
    "families": Experiment(
        "Encoders of timm", "", {"small": _families()}, linear={"small": {"fast": PROBES["small"]["fast"]}},
        compared=True,
    ),
    "baselines": Experiment("Untrained, MoCo, supervised", "", _both(_baselines), linear=PROBES),
}  # fmt: skip
"""The experiments by name."""
