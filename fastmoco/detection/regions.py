"""Regions of an image: their pooling, and the C4 heads that share the encoder's last stage.

R: regions of all images of a batch. C: channels. K: classes with the background.
"""

from __future__ import annotations

import math

import torch
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

Predictions = list[dict[str, torch.Tensor]]


class RegionPool(MultiScaleRoIAlign):
    """RoIAlign with detectron2's conventions: pixel centres at half coordinates, one sample for each cell of a bin.

    torchvision's infers the strides from the first batch that it sees. Here they are arguments, so that a resumed run
    cannot differ from a whole one.
    """

    def __init__(self, names: list[str], strides: list[int], output_size: int) -> None:
        # 0: a sample for each cell of the feature map in a bin, as in detectron2
        super().__init__(names, output_size, sampling_ratio=0)
        self.names, self.strides = names, strides
        lowest, highest = (int(math.log2(strides[place])) for place in (0, -1))
        self.level = LevelMapper(lowest, highest)

    def forward(
        self, x: dict[str, torch.Tensor], boxes: list[torch.Tensor], image_shapes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Features of regions: [R, C, size, size].

        Args:
            x: feature maps [B, C, H/stride, W/stride] by name.
            boxes: float32[R_b, 4] of each image, in pixels.
            image_shapes: not used.
        """
        maps = [x[name] for name in self.names]
        owners = torch.cat([box.new_full((len(box), 1), place) for place, box in enumerate(boxes)])
        regions = torch.cat([owners, torch.cat(boxes)], 1)
        if len(maps) == 1:
            return self._pooled(maps[0], regions, self.strides[0])
        levels = self.level(boxes)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], *self.output_size)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            # levels differ in size, so each is pooled by itself and written to the rows of its regions
            (which,) = torch.where(levels == level)
            pooled = pooled.index_put((which,), self._pooled(features, regions[which], stride).to(pooled.dtype))
        return pooled

    def _pooled(self, features: torch.Tensor, regions: torch.Tensor, stride: int) -> torch.Tensor:
        size = (self.output_size[0], self.output_size[1])
        # aligned: without it, torchvision shifts every region by half a pixel, as detectron's first RoIAlign did
        return roi_align(features, regions, size, 1 / stride, self.sampling_ratio, aligned=True)


class SharedStageHeads(RoIHeads):
    """C4's heads: `box_head`, the encoder's fifth stage and the extra BatchNorm, is shared by boxes and masks.

    In training it processes each region once, so that its BatchNorm sees the sampled regions and no others
    (arXiv 1911.05722, appendix; the masks as in detectron2's R50-C4). `mask_predictor` may be None.
    """

    def has_mask(self) -> bool:
        """Whether masks are predicted."""
        return self.mask_predictor is not None

    def forward(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[torch.Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, torch.Tensor]] | None = None,
    ) -> tuple[Predictions, dict[str, torch.Tensor]]:
        """Losses in training, else detections; arguments and results are those of RoIHeads."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        logits, deltas = self._boxes(self._maps(features, proposals, image_shapes))
        found = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        result = [
            {"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in zip(*found, strict=True)
        ]
        if self.has_mask():
            # pooled again: masks are predicted within the detected boxes, not within the proposals
            maps = self._maps(features, [one["boxes"] for one in result], image_shapes)
            masks = maskrcnn_inference(self._masks(maps), [one["labels"] for one in result])
            result = [one | {"masks": mask} for one, mask in zip(result, masks, strict=True)]
        return result, {}

    def _maps(self, features, regions, image_shapes) -> torch.Tensor:
        """[R, C, 7, 7] of the last stage."""
        return self.box_head(self.box_roi_pool(features, regions, image_shapes))

    def _boxes(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [R, K] and box deltas [R, 4K]."""
        # the last stage's global average pooling, which the pretrained encoder has as well
        return self.box_predictor(maps.mean((2, 3)))

    def _masks(self, maps: torch.Tensor) -> torch.Tensor:
        """Logits [R, K, 14, 14]."""
        assert self.mask_predictor is not None
        return self.mask_predictor(maps)

    def _losses(self, features, proposals, image_shapes, targets) -> dict[str, torch.Tensor]:
        regions, matched, labels, regression = self.select_training_samples(proposals, targets)
        maps = self._maps(features, regions, image_shapes)
        classifier, box_reg = fastrcnn_loss(*self._boxes(maps), labels, regression)
        losses = {"loss_classifier": classifier, "loss_box_reg": box_reg}
        if self.has_mask():
            # masks are trained on foreground regions alone, from maps that are already computed: a second pass through
            # the stage would move its BatchNorm's statistics again
            objects = [label > 0 for label in labels]
            logits = self._masks(maps[torch.cat(objects)])
            losses["loss_mask"] = maskrcnn_loss(
                logits,
                [region[which] for region, which in zip(regions, objects, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[which] for match, which in zip(matched, objects, strict=True)],
            )
        return losses
