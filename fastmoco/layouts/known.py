"""What is known of other projects' weight files: where their encoders are, and the encoders that --arch does not have.

The names were looked up in each project's source. A file may hold several encoders; which one is taken follows each
method's own evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing add, at any place."""
CONTAINERS = {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights"}
"""Keys under which a file holds its weights, and attributes in which a wrapping module holds its model."""
STEM_AND_STAGES = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
"""First parts of the names of a ResNet's tensors without its classifier."""
HEADS = {
    *("fc", "head", "heads", "classifier", "online_classifier", "linear", "projector", "projection_head", "prototypes"),
    *("predictor", "prediction_head", "neck", "mlp", "last_layer"),
}
"""First parts of names that may stand beside an encoder's: classifiers and the heads of pretraining."""


@dataclass(frozen=True)
class Layout:
    """A layout of weight files.

    Attributes:
        name: as the log says it.
        encoder: regular expression of the encoder's place: its names' prefix without WRAPPERS and CONTAINERS.
        beside: the same of encoders that may be in the file, too, and are not taken; None for none.
        marks: first parts of names of which one must be in the file; empty for none.
        taken: which of the encoders is taken, for the log.
    """

    name: str
    encoder: str
    beside: str | None = None
    marks: frozenset[str] = frozenset()
    taken: str = "its encoder"

    def fits(self, places: Collection[str], firsts: Collection[str]) -> str | None:
        """The place of the encoder to take, if a file with encoders at `places` is of this layout."""
        taken = [place for place in places if re.fullmatch(self.encoder, place)]
        others = [place for place in places if place not in taken]
        if len(taken) != 1 or (self.marks and not self.marks & set(firsts)):
            return None
        allowed = self.beside is not None and all(re.fullmatch(self.beside, place) for place in others)
        return taken[0] if allowed or not others else None


LAYOUTS = (
    Layout("original MoCo", "encoder_q", "encoder_k", taken="its query encoder"),
    Layout("moco-v3", "base_encoder", "momentum_encoder", taken="its base encoder"),
    Layout("DINO", r"teacher(\.backbone)?", r"student(\.backbone)?", taken="its teacher"),
    Layout(
        "VISSL", r"(classy_state_dict\.base_model\.)?(trunk\.)?_feature_blocks", r"classy_state_dict\.loss\..*",
        taken="its trunk",
    ),
    # of MMSelfSup and MMPretrain; `backbone` is also the first module of the online or query encoder
    Layout(
        "MMSelfSup", "backbone", r"(encoder_[qk]|online_net|target_net|base_encoder|momentum_encoder)\.0",
        frozenset({"neck", "data_preprocessor"}), "its backbone",
    ),
    # of its examples and benchmarks. In its MoCo v2 benchmark `backbone` is the key encoder, which it evaluates
    Layout(
        "lightly", "backbone", "backbone_momentum|query_backbone|student_backbone",
        frozenset({"projection_head", "query_projection_head"}), "its backbone",
    ),
    Layout("lightly", "teacher_backbone", "student_backbone", taken="its teacher"),
    Layout("solo-learn", "backbone", "momentum_backbone", frozenset({"classifier"}), "its backbone"),
    Layout("solo-learn", "encoder", "momentum_encoder", frozenset({"classifier"}), "its encoder"),  # of old versions
    Layout("Barlow Twins", "backbone", marks=frozenset({"projector"}), taken="its backbone"),  # and VICReg
    # timm and torchvision evaluate the average where there is one
    Layout("timm or torchvision training", "(state_dict|model)_ema", "", taken="the averaged weights"),
    Layout("SwAV", "", marks=frozenset({"prototypes"})),
    Layout("state dictionary", ""),
)  # fmt: skip
"""The layouts, in the order in which they are tried."""

_VITS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base", 1024: "vit_large", 1280: "vit_huge", 1408: "vit_giant"}
_OTHERS = (
    (r"(.*\.)?attn\.relative_position_bias_table", "a Swin transformer"),
    (r"(.*\.)?patch_embed\.proj(ection)?\.\d.*", "a vision transformer with a convolutional stem"),
    (r"(.*\.)?(patch_embed\.proj(ection)?|patch_embeddings\.projection|conv_proj)\.weight", "vit"),
    (r"(.*\.)?(stages\.0\.blocks\.0\.conv_dw|stages\.0\.0\.dwconv|stages\.0\.0\.depthwise_conv)\.weight", "a ConvNeXt"),
    (r"(.*\.)?features\.\d\.\d\.block\.\d\.weight", "a ConvNeXt"),
    (r"(.*\.)?(res2|bottom_up\.res2)\.0\.conv1\.weight", "a ResNet under detectron2's names"),
    (r"(.*\.)?embedder\.embedder\.convolution\.weight", "a ResNet under Hugging Face's names"),
    (r"(.*\.)?(conv_stem|blocks\.0\.0\.conv_dw)\.weight", "an EfficientNet or MobileNet"),
    (r"(.*\.)?features\.denseblock1\..*", "a DenseNet"),
    (r"(.*\.)?(trunk_output\.block1|s1\.b1)\..*", "a RegNet"),
    (r"(.*\.)?features\.0\.0\.weight", "an EfficientNet or MobileNet"),
    (r"(.*\.)?features\.0\.weight", "a VGG or AlexNet"),
)
"""Names by which encoders are recognised that --arch does not have."""


def other_encoder(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The kind of an encoder that --arch does not have, by its tensors' names; None where it is not known."""
    for pattern, kind in _OTHERS:
        for name in tensors:
            if re.fullmatch(pattern, name):
                size = tensors[name].shape[0] if tensors[name].dim() else 0
                return f"a {_VITS.get(size, f'vision transformer of {size} dimensions')}" if kind == "vit" else kind
    return None
