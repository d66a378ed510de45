"""The settings of a transfer, and recipes with the paper's.

Sources: arXiv 1911.05722, section 4.2 and appendix; what they leave open is as in detectron2's R50-C4 and R50-FPN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags
from fastmoco.architectures import ARCHITECTURES, MOCO_V3, check_arch
from fastmoco.settings import CheckpointSettings, plain

RANDOM = "random"
"""In place of a file: random weights."""
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_FREE = {
    *("recipe", "train", "val", "out", "json", "classes", "iterations", "epochs", "threads", "checkpoint_every"),
    *("checkpoint_minutes", "keep_checkpoints", "keep_every", "checkpoint_space", "checkpoint_copy", "disk_patience"),
    *("log_every", "eval_every", "notify", "rank_timeout", "test_size", "test_proposals"),
}
"""Settings that may change when a run is resumed; sets and classes are compared by their content."""


def no_backbone(arch: str) -> str:
    """Why an encoder is refused, and which serve."""
    return (
        f"--arch {arch} is no backbone of the detectors, which are built on ResNets as in the papers; use one of "
        f"{', '.join(ARCHITECTURES)}, or a ResNet of timm, such as timm:resnet50d"
    )


@dataclass(frozen=True)
class DataSettings:
    """The sets, and the sizes of their images."""

    train: tuple[str, ...] = ()
    """Sets to train on, concatenated: FOLDER:SPLIT of a VOC- or COCO-format folder, or IMAGES:INSTANCES.json."""
    val: str = ""
    """Set to test on, in the same form."""
    classes: tuple[str, ...] = VOC_CLASSES
    """Class names of VOC-format sets; COCO-format sets contain theirs."""
    # 480 to 800: arXiv 1911.05722, section 4.2.1, for VOC. COCO's recipes have 640 to 800 (section 4.2.2)
    min_sizes: tuple[int, ...] = tuple(range(480, 801, 32))
    """Short sides of training images in pixels; one is drawn for each image."""
    max_size: int = 1333
    """Maximum long side in pixels; larger images are scaled down."""
    test_size: int = 800
    """Short side of test images in pixels."""


@dataclass(frozen=True)
class DetectorSettings:
    """The detector, and where its encoder's weights come from."""

    init: str = RANDOM
    """File with an encoder in any known layout (docs/evaluation.md), run folder, or `random`."""
    arch: str = "resnet50"
    """Architecture of the encoder: a ResNet of torchvision or, as timm:NAME, of timm."""
    detector: Literal["c4", "fpn"] = "c4"
    """c4: region features from stage 4, with stage 5 as the box head; fpn: a feature pyramid."""
    mask: bool = False
    """Train Mask R-CNN, which needs segmentation masks, instead of Faster R-CNN."""
    box_head: Literal["2fc", "4conv1fc"] = "2fc"
    """Box head of the feature pyramid: two linear layers, or four convolutions with BatchNorm and a linear one."""
    fpn_channels: int = 256
    """Channels of the feature pyramid and of its heads' convolutions."""
    # this and the two below: detectron2's defaults
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Anchor sizes in pixels, each with three aspect ratios; fpn needs five, one per level."""
    rois_per_image: int = 512
    """Regions sampled per training image, at most a quarter of them foreground."""
    test_proposals: int = 1000
    """Region proposals per test image."""


@dataclass(frozen=True)
class OptimisationSettings:
    """Length of the run, and SGD with its schedule."""

    # this, the milestones and the warm-up: the authors' pascal_voc_R_50_C4_24k_moco.yaml
    iterations: int = 24_000
    """Training steps; 0 evaluates the initial weights."""
    epochs: int | None = None
    """Length of the training in epochs; overrides --iterations."""
    batch_size: int = 16
    """Images per step, over all ranks."""
    # detectron2's for 16 images, two on each of 8 GPUs
    lr: float = 0.02
    """Learning rate; with --scale-lr, that at --base-batch-size."""
    base_batch_size: int = 16
    """Batch size for which --lr is given; used only with --scale-lr."""
    scale_lr: bool = False
    """Multiply --lr by --batch-size / --base-batch-size. The number of iterations does not change."""
    milestones: tuple[int, ...] = (18_000, 22_000)
    """Steps at which the learning rate is divided by ten."""
    warmup: int = 100
    """Steps of linear warm-up, from a thousandth of the learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay of SGD, except on BatchNorm."""


@dataclass(frozen=True)
class HardwareSettings:
    """Precision and threads."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass."""
    threads: int = 4
    """Reading threads per rank."""


@dataclass(frozen=True)
class RecordSettings:
    """Run folder, evaluations and log."""

    out: Path | None = None
    """Run folder; the same command resumes the run in it. Default: that of the same transfer in runs/, else a new one,
    runs/detect-RECIPE-DATE."""
    json: Path | None = None
    """File to write the result to."""
    eval_every: int = 0
    """Steps between evaluations, the first before training; 0: only at the end."""
    log_every: int = 20
    """Steps between log lines."""
    rank_timeout: float = 10.0
    """Minutes that a rank waits for another one, which may hang; then all end with the cause, and can be restarted."""
    notify: str | None = None
    """Command that is run when the run stops, fails or finishes, and for each warning: on rank 0, without a shell, with
    FASTMOCO_EVENT and others in its environment and the status as JSON on stdin (docs/training.md)."""


@dataclass(frozen=True)
class DetectCheckpoints(CheckpointSettings):
    """When checkpoints are written, where, and which are kept."""

    checkpoint_every: int = 1000
    keep_checkpoints: int = 2


GROUPS: dict[str, type] = {
    "data": DataSettings,
    "detector": DetectorSettings,
    "optimisation": OptimisationSettings,
    "hardware": HardwareSettings,
    "records and evaluation": RecordSettings,
    "checkpoints": DetectCheckpoints,
}
"""Groups of flags in the order in which --help lists them."""


@dataclass(frozen=True)
class DetectSettings(
    DetectCheckpoints, RecordSettings, HardwareSettings, OptimisationSettings, DetectorSettings, DataSettings
):
    """Train a detector from an encoder's weights, and measure its average precision."""

    recipe: str = "voc-c4"
    """Name of the recipe that sets the defaults."""
    seed: int = 0
    """Seed of the order, the sizes and flips, the sampled regions, and the random weights."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data; raises ConfigError."""
        check_arch(self.arch)
        flags.require(self.arch not in MOCO_V3, no_backbone(self.arch))
        flags.at_least(1, self, "batch_size", "base_batch_size", "max_size", "test_size", "fpn_channels")
        flags.at_least(1, self, "rois_per_image", "test_proposals", "threads", "log_every")
        self.check_checkpoints()
        flags.at_least(0, self, "seed", "iterations", "epochs", "warmup", "eval_every", "weight_decay")
        flags.check_sizes(self)
        flags.positive(self, "lr", "rank_timeout")
        flags.share(self, "momentum", below_one=True)
        flags.some(self, "min_sizes", "anchor_sizes", "classes")
        flags.at_least(1, self, "min_sizes", "anchor_sizes")
        flags.at_least(1, self, "milestones")
        flags.rising("--milestones " + " ".join(map(str, self.milestones)), self.milestones)
        levels = len(self.anchor_sizes)
        flags.require(
            self.detector == "c4" or levels == 5,
            f"--anchor-sizes has {levels} sides; the pyramid of --detector fpn has five levels, so give five",
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: warm-up, then × 0.1 at each milestone."""
        peak = self.lr * (self.batch_size / self.base_batch_size if self.scale_lr else 1.0)
        done = step / self.warmup if step < self.warmup else 1.0
        # from a thousandth, detectron2's WARMUP_FACTOR
        return peak * (0.001 + 0.999 * done) * 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def deciding(self) -> dict[str, Any]:
        """The settings that determine the weights, in plain values; a run is resumed only under the same ones."""
        return {name: value for name, value in plain(self).items() if name not in _FREE}


def voc_c4() -> DetectSettings:
    """Faster R-CNN, R50-C4, on VOC (arXiv 1911.05722, section 4.2.1): 24k iterations, × 0.1 at 18k and 22k."""
    return DetectSettings()


def coco_c4_1x() -> DetectSettings:
    """Mask R-CNN, R50-C4, on COCO (arXiv 1911.05722, section 4.2.2): the 1× schedule."""
    return replace(
        voc_c4(),
        recipe="coco-c4-1x",
        mask=True,
        min_sizes=tuple(range(640, 801, 32)),
        iterations=90_000,
        milestones=(60_000, 80_000),
        # detectron2's default, which the authors' configurations for COCO leave as it is
        warmup=1000,
    )


def coco_c4_2x() -> DetectSettings:
    """The 2× schedule."""
    return replace(coco_c4_1x(), recipe="coco-c4-2x", iterations=180_000, milestones=(120_000, 160_000))


def coco_fpn_1x() -> DetectSettings:
    """Mask R-CNN, R50-FPN, on COCO (arXiv 1911.05722, section 4.2.2): the 1× schedule."""
    return replace(coco_c4_1x(), recipe="coco-fpn-1x", detector="fpn")


def coco_fpn_2x() -> DetectSettings:
    """The 2× schedule."""
    return replace(coco_c4_2x(), recipe="coco-fpn-2x", detector="fpn")


RECIPES: dict[str, Callable[[], DetectSettings]] = {
    "voc-c4": voc_c4,
    "coco-c4-1x": coco_c4_1x,
    "coco-c4-2x": coco_c4_2x,
    "coco-fpn-1x": coco_fpn_1x,
    "coco-fpn-2x": coco_fpn_2x,
}


def recipe(name: str) -> DetectSettings:
    """The settings of a recipe by its name; raises ConfigError for an unknown one."""
    flags.require(name in RECIPES, f"unknown --recipe {name!r}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()
