"""Faster R-CNN and Mask R-CNN from torchvision's parts, on an encoder of this program.

Every BatchNorm is trained, with statistics over the images or regions of all ranks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fastmoco.architectures import by_timm
from fastmoco.detection.regions import RegionPool, SharedStageHeads
from fastmoco.detection.settings import DetectSettings, no_backbone
from fastmoco.flags import require
from fastmoco.model.batchnorm import SyncBatchNorm2d, replace_batchnorm
from fastmoco.model.encoders import Backbone, backbone

ENCODER_PREFIXES = {
    "c4": {"backbone.": "", "roi_heads.box_head.layer4.": "layer4."},
    "fpn": {"backbone.body.": ""},
}
"""Where a detector holds the encoder: prefixes of its tensors' names, and the encoder's own prefixes for them."""
# numbers from here on are detectron2's defaults (Base-RCNN-C4.yaml, Base-RCNN-FPN.yaml), which the paper's
# configurations extend; torchvision's defaults differ in some
_SHAPES = (0.5, 1.0, 2.0)
_STAGES: tuple[str, ...] = ("layer1", "layer2", "layer3", "layer4")
_STRIDES = [4, 8, 16, 32]
_HIDDEN = 1024
# None are torchvision's weights (10, 10, 5, 5), the same as detectron2's
_HEADS = {"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.5, "positive_fraction": 0.25, "bbox_reg_weights": None}
_RESULTS = {"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 100}


class _Batch(GeneralizedRCNNTransform):
    """Normalises and pads images. They are already resized; detections stay in pixels of the input."""

    def resize(
        self, image: torch.Tensor, target: dict[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
        """Return image and target unchanged."""
        return image, target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Return the result unchanged."""
        return result


def build_detector(settings: DetectSettings, classes: int) -> GeneralizedRCNN:
    """Build a detector with random weights, seeded by `settings.seed`.

    Its input is a list of images, float32[3, H, W] in 0..1. In training it also needs targets with `boxes`, `labels`,
    and `masks`, and returns losses by name. In evaluation it returns a dictionary for each image: `boxes` float32[D, 4]
    in pixels, `scores`, `labels` from 1, and `masks` [D, 1, 14 or 28, same], the probability within the box.

    Args:
        settings: settings of the transfer.
        classes: number of classes, without the background.

    Raises:
        ConfigError: the encoder is no ResNet, or timm has none of that name.
    """
    # the same weights on every rank, and with any number of ranks
    torch.manual_seed(settings.seed)
    encoder = _resnet(settings.arch)
    body, rpn_channels, heads = (_c4 if settings.detector == "c4" else _fpn)(settings, encoder, classes + 1)
    # images are padded to the coarsest stride of the encoder, so that every map covers the image exactly
    divisible = 16 if settings.detector == "c4" else 32
    mean, std = list(encoder.image_mean), list(encoder.image_std)
    batch = _Batch(settings.test_size, settings.max_size, mean, std, size_divisible=divisible)
    detector = GeneralizedRCNN(body, _proposals(settings, rpn_channels), heads, batch)
    # last, so that it reaches the pyramid and the heads: the paper synchronises these as well (section 4.2)
    replace_batchnorm(detector, SyncBatchNorm2d)
    return detector


def normalisation(detector: GeneralizedRCNN) -> dict[str, list[float]]:
    """`mean` and `std` of red, green and blue, in [0, 1], that a detector normalises images by."""
    batch = cast(_Batch, detector.transform)
    return {"mean": batch.image_mean, "std": batch.image_std}


def normalise_by(detector: GeneralizedRCNN, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let a detector normalise images by other values than its architecture's; see `normalisation`."""
    batch = cast(_Batch, detector.transform)
    batch.image_mean, batch.image_std = list(mean), list(std)


def encoder_name(detector: str, name: str) -> str | None:
    """The encoder's name of the detector's tensor `name`, or None if it is not the encoder's."""
    for place, own in ENCODER_PREFIXES[detector].items():
        if name.startswith(place):
            return own + name[len(place) :]
    return None


def _resnet(arch: str) -> Backbone:
    """An encoder whose stages are `layer1` to `layer4`, registered in the order in which they are called."""
    encoder = backbone(arch)
    if by_timm(arch):
        from timm.models.resnet import ResNet as TimmResNet

        require(isinstance(encoder, TimmResNet), no_backbone(arch))
    return encoder


def _c4(settings: DetectSettings, encoder: Backbone, outputs: int) -> tuple[nn.Module, int, RoIHeads]:
    """Stages 1 to 4 (stride 16) below, stage 5 and the extra BatchNorm as the head (arXiv 1911.05722, appendix)."""
    # IntermediateLayerGetter drops what follows layer3; layer4 goes to the heads
    body = IntermediateLayerGetter(encoder, {"layer3": "0"})
    stage = nn.Sequential(OrderedDict(layer4=_stage(encoder, "layer4"), norm=nn.BatchNorm2d(encoder.out_dim)))
    heads = SharedStageHeads(
        # 14 × 14 bins, which the stride of layer4 halves
        RegionPool(["0"], [16], 14), stage, _box_predictor(encoder.out_dim, outputs),
        batch_size_per_image=settings.rois_per_image, **_HEADS, **_RESULTS,
        mask_predictor=_mask_predictor(encoder.out_dim, 256, outputs) if settings.mask else None,
    )  # fmt: skip
    return body, _channels(_stage(encoder, "layer3")), heads


def _fpn(settings: DetectSettings, encoder: Backbone, outputs: int) -> tuple[nn.Module, int, RoIHeads]:
    """A pyramid on all stages, with BatchNorm in it and in the heads' convolutions (arXiv 1911.05722, section 4.2)."""
    width, names = settings.fpn_channels, [str(place) for place in range(4)]
    channels = [_channels(_stage(encoder, name)) for name in _STAGES]
    returned: dict[str, str] = dict(zip(_STAGES, names, strict=True))
    body = BackboneWithFPN(encoder, returned, channels, width, norm_layer=nn.BatchNorm2d)
    if settings.box_head == "2fc":
        box_head: nn.Module = TwoMLPHead(width * 7 * 7, _HIDDEN)
    else:
        box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [_HIDDEN], norm_layer=nn.BatchNorm2d)
    # torchvision's RoIHeads predicts masks if it is given these three
    masks = {}
    if settings.mask:
        masks = {
            "mask_roi_pool": RegionPool(names, _STRIDES, 14),
            "mask_head": MaskRCNNHeads(width, [width] * 4, 1, norm_layer=nn.BatchNorm2d),
            "mask_predictor": _mask_predictor(width, width, outputs),
        }
    heads = RoIHeads(
        RegionPool(names, _STRIDES, 7), box_head, _box_predictor(_HIDDEN, outputs),
        batch_size_per_image=settings.rois_per_image, **_HEADS, **_RESULTS, **masks,
    )  # fmt: skip
    return body, width, heads


def _proposals(settings: DetectSettings, channels: int) -> RegionProposalNetwork:
    """Anchors, and proposals in detectron2's numbers; those before suppression are of each level of the pyramid."""
    sides = settings.anchor_sizes
    if settings.detector == "c4":
        # one map, so all five sizes at each position
        sizes, before, after = (sides,), {"training": 12_000, "testing": 6000}, 2000
    else:
        # a size for each level. The fifth, a pooling of the fourth, has anchors only: regions are pooled from four
        sizes, before, after = tuple((side,) for side in sides), {"training": 2000, "testing": 1000}, 1000
    anchors = AnchorGenerator(sizes, (_SHAPES,) * len(sizes))
    return RegionProposalNetwork(
        anchors, RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7, bg_iou_thresh=0.3, batch_size_per_image=256, positive_fraction=0.5,
        pre_nms_top_n=before, post_nms_top_n={"training": after, "testing": settings.test_proposals}, nms_thresh=0.7,
    )  # fmt: skip


def _box_predictor(channels: int, outputs: int) -> FastRCNNPredictor:
    predictor = FastRCNNPredictor(channels, outputs)
    _init_small(predictor.cls_score, 0.01)
    _init_small(predictor.bbox_pred, 0.001)
    return predictor


def _mask_predictor(channels: int, hidden: int, outputs: int) -> MaskRCNNPredictor:
    predictor = MaskRCNNPredictor(channels, hidden, outputs)
    _init_small(predictor.mask_fcn_logits, 0.001)
    return predictor


def _init_small(layer: nn.Module | torch.Tensor, deviation: float) -> None:
    """Small normal weights, as in detectron2: torchvision's initial predictions would be far from even odds."""
    assert isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)


def _stage(encoder: Backbone, name: str) -> nn.Sequential:
    stage = getattr(encoder, name)
    assert isinstance(stage, nn.Sequential)
    return stage


def _channels(stage: nn.Sequential) -> int:
    """Output channels of a ResNet's stage."""
    block = stage[-1]
    # a norm of timm's may be of groups
    return block.get_parameter("bn3.weight" if hasattr(block, "bn3") else "bn2.weight").numel()
