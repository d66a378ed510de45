"""Weight files as other projects write them: the same encoder in each project's layout, under its names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from tests.support.runs import narrow_resnet10

Tensors = dict[str, torch.Tensor]
_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def encoder(seed: int) -> Tensors:
    """A narrow resnet10 without its classifier; no two tensors of two seeds are alike."""
    torch.manual_seed(seed)
    net = narrow_resnet10(1 / 4)()
    tensors = {name: value for name, value in net.state_dict().items() if not name.startswith("fc.")}
    return {
        name: value + torch.rand_like(value) if value.is_floating_point() else value + seed
        for name, value in tensors.items()
    }


def under(prefix: str, tensors: Tensors) -> Tensors:
    """Tensors with a prefix before their names."""
    return {prefix + name: value for name, value in tensors.items()}


def numbered(tensors: Tensors) -> Tensors:
    """The names that `nn.Sequential(*resnet.children())` has."""
    parts = (name.partition(".") for name in tensors)
    return {f"{_CHILDREN[first]}.{rest}": v for (first, _, rest), v in zip(parts, tensors.values(), strict=True)}


def linear(prefix: str, outputs: int = 16, inputs: int = 128) -> Tensors:
    """A linear layer."""
    generator = torch.Generator().manual_seed(outputs)
    return {
        f"{prefix}.weight": torch.randn(outputs, inputs, generator=generator),
        f"{prefix}.bias": torch.zeros(outputs),
    }


def mlp(prefix: str) -> Tensors:
    """A head of two layers."""
    return linear(f"{prefix}.0", 128) | linear(f"{prefix}.2")


def original(q: Tensors, k: Tensors, wrapped: str = "module.", cut: bool = False) -> dict[str, Any]:
    """A checkpoint of the original MoCo v2, or the weights that its authors publish."""
    state = under(f"{wrapped}encoder_q.", q | mlp("fc"))
    if not cut:
        queue = torch.nn.functional.normalize(torch.randn(16, 24), dim=0)
        state |= under(f"{wrapped}encoder_k.", k | mlp("fc"))
        state |= {f"{wrapped}queue": queue, f"{wrapped}queue_ptr": torch.tensor([8])}
    return {"epoch": 7, "arch": "resnet10", "state_dict": state}


def lightning(state: Tensors) -> dict[str, Any]:
    """What PyTorch Lightning saves around a state dictionary."""
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.2.0", "state_dict": state, "loops": {},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}}, "optimizer_states": [{"state": {}}],
    }  # fmt: skip


ARGUMENTS = argparse.Namespace(arch="resnet10", lr=0.03, path=Path("data"), best=np.float64(0.5))
# Of q and k, q is the encoder that the method evaluates: the query's, the base encoder, or the teacher
CONTENTS: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "original MoCo, whole.pth.tar": original,
    "original MoCo, whole, no module.pth.tar": lambda q, k: original(q, k, ""),
    "original MoCo, whole, compiled.pth.tar": lambda q, k: original(q, k, "module._orig_mod."),
    "original MoCo, tensors alone.pth": lambda q, k: original(q, k)["state_dict"],
    "original MoCo, published.pth.tar": lambda q, k: original(q, k, cut=True),
    "original MoCo, published, no arch.pth.tar": lambda q, k: {
        "state_dict": original(q, k, cut=True)["state_dict"]
    },
    "torchvision.pth": lambda q, _: q | linear("fc"),
    "torchvision, an integer inside.pth": lambda q, _: q | {"epoch": 3},
    "torchvision, no counters.pth": lambda q, _: {n: v for n, v in q.items() if "num_batches" not in n},
    "torchvision, half.pt": lambda q, _: {n: v.half() if v.is_floating_point() else v for n, v in q.items()},
    "torchvision, bfloat16.pt": lambda q, _: {n: v.bfloat16() if v.is_floating_point() else v for n, v in q.items()},
    "torchvision, double.pt": lambda q, _: {n: v.double() if v.is_floating_point() else v for n, v in q.items()},
    "torchvision training, model and args.pth": lambda q, _: {
        "model": under("module.", q | linear("fc")), "optimizer": {"state": {0: {"m": torch.ones(1)}}},
        "epoch": 3, "args": ARGUMENTS,
    },
    "torchvision training, with average.pth": lambda q, k: {
        "model": k | linear("fc"), "epoch": 3, "args": ARGUMENTS,
        # of torchvision's ExponentialMovingAverage, an AveragedModel
        "model_ema": under("module.", q | linear("fc")) | {"n_averaged": torch.tensor(7)},
    },
    "net, numpy scalars.pth": lambda q, _: {"net": q, "acc": np.float64(71.1), "epoch": np.int64(3)},
    "numpy arrays.pth": lambda q, _: {name: value.numpy() for name, value in q.items()},
    "timm.safetensors": lambda q, _: q | linear("fc"),
    "timm training, with average.pth.tar": lambda q, k: {
        "epoch": 3, "arch": "resnet10", "state_dict": k | linear("fc"), "state_dict_ema": q | linear("fc"),
        "args": ARGUMENTS, "metric": 70.0,
    },
    "lightly, example.ckpt": lambda q, k: lightning(
        under("backbone.", numbered(q)) | under("backbone_momentum.", numbered(k))
        | mlp("projection_head.layers") | mlp("projection_head_momentum.layers")
    ),
    "lightly, benchmark.ckpt": lambda q, k: lightning(
        under("backbone.", q) | under("query_backbone.", k) | mlp("projection_head.layers")
        | linear("online_classifier.linear")
    ),
    "solo-learn.ckpt": lambda q, k: lightning(
        under("backbone.", q) | under("momentum_backbone.", k) | linear("classifier") | mlp("projector")
        | mlp("momentum_projector") | {"queue": torch.randn(2, 16, 24), "queue_ptr": torch.zeros(1).long()}
    ),
    "solo-learn, old.ckpt": lambda q, k: lightning(
        under("encoder.", q) | under("momentum_encoder.", k) | linear("classifier") | mlp("projector")
    ),
    "MMSelfSup 0.x.pth": lambda q, k: {
        "meta": {"epoch": 3, "mmselfsup_version": "0.11"},
        "state_dict": under("backbone.", q) | under("encoder_q.0.", q) | under("encoder_k.0.", k) | mlp("neck.mlp")
        | mlp("encoder_q.1.mlp") | mlp("encoder_k.1.mlp") | {"queue": torch.randn(16, 24)},
    },
    "MMPretrain.pth": lambda q, k: {
        "meta": {"epoch": 3}, "message_hub": {},
        "state_dict": under("backbone.", q) | mlp("neck.mlp") | under("encoder_k.module.0.", k)
        | {"data_preprocessor.mean": torch.zeros(3, 1, 1), "encoder_k.steps": torch.tensor(3)},
    },
    "MMSelfSup, extracted backbone.pth": lambda q, _: {"state_dict": q, "author": "MMSelfSup"},
    "VISSL.torch": lambda q, k: {
        "phase_idx": 3,
        "classy_state_dict": {
            "base_model": {"model": {"trunk": under("_feature_blocks.", q), "heads": linear("0.clf.0")}, "meta": {}},
            "loss": under("moco_encoder.trunk._feature_blocks.", k), "optimizer": {"state": {}},
        },
    },
    "moco-v3.pth.tar": lambda q, k: {
        "epoch": 3, "arch": "resnet10",
        "state_dict": under("module.base_encoder.", q | mlp("fc")) | under("module.momentum_encoder.", k | mlp("fc"))
        | mlp("module.predictor"),
    },
    "DINO.pth": lambda q, k: {
        "student": under("module.backbone.", k) | mlp("module.head.mlp"),
        "teacher": under("module.backbone.", q) | mlp("module.head.mlp"), "epoch": 3, "args": ARGUMENTS,
    },
    "SwAV.pth.tar": lambda q, _: under("module.", q | mlp("projection_head") | linear("prototypes", 30, 16)),
    "Barlow Twins.pth": lambda q, _: {
        "epoch": 3,
        "model": under("module.", under("backbone.", q) | mlp("projector") | {"bn.running_mean": torch.zeros(16)}),
    },
}  # fmt: skip
"""Files that hold the encoder q, by name; k is the method's other encoder."""


class Configuration:
    """Stands for a class that the reader does not know, as OmegaConf's."""


def _vit(dimensions: int) -> Tensors:
    return {"patch_embed.proj.weight": torch.zeros(dimensions, 3, 16, 16), "blocks.0.norm1.weight": torch.zeros(4)}


REFUSED: dict[str, tuple[Callable[[Tensors, Tensors], Any], str]] = {
    "two encoders.pth": (
        lambda q, k: under("left.", q) | under("right.", k),
        "holds 2 encoders (left, right), and its layout does not say which one is meant",
    ),
    "a part of an encoder.pth": (
        lambda q, _: {name: value for name, value in q.items() if not name.startswith("layer4")},
        "layer4.0.conv1.weight is missing",
    ),
    "a tensor too many.pth": (
        lambda q, _: q | {"conv9.weight": torch.zeros(1)},
        "conv9.weight is unexpected, 1 in all",
    ),
    "stem for CIFAR.pth": (
        lambda q, _: q | {"conv1.weight": torch.zeros(16, 3, 3, 3)},
        "holds a ResNet whose first convolution is 3 × 3, not 7 × 7",
    ),
    "ResNet-D of timm.pth": (
        lambda q, _: (
            {name: value for name, value in q.items() if name != "conv1.weight"}
            | {"conv1.0.weight": torch.zeros(16, 3, 3, 3), "conv1.3.weight": torch.zeros(16, 16, 3, 3)}
        ),
        "a stem of several convolutions, which torchvision's do not have; of one of timm's give the name",
    ),
    "moco-v3, ViT-S.pth.tar": (
        lambda q, _: {"arch": "vit_small", "state_dict": under("module.base_encoder.", _vit(384))},
        "vit_small",
    ),
    "DINO, ViT-B.pth": (
        lambda q, _: {"teacher": under("backbone.", _vit(768)), "student": under("module.backbone.", _vit(768))},
        "holds a vit_base; its architecture is not searched for: name it by --arch",
    ),
    "ConvNeXt.pth": (
        lambda q, _: {"model": {"stages.0.0.dwconv.weight": torch.zeros(96, 1, 7, 7)}},
        "holds a ConvNeXt; its architecture is not searched for: name it by --arch",
    ),
    "arguments of an unknown class.pth": (
        lambda q, _: {"state_dict": q, "cfg": Configuration()},
        "it holds tests.support.weight_files.Configuration, which is no tensor or plain value; if you trust the file",
    ),
    "not finite.pth": (
        lambda q, _: q | {"bn1.running_var": torch.full_like(q["bn1.running_var"], torch.nan)},
        "bn1.running_var has 16 of 16 values that are infinite or not a number",
    ),
}
"""Files that are refused, and what the refusal says."""


def write(content: Any, path: Path, legacy: bool = False) -> Path:
    """Write a file in the format that its suffix says; `legacy`: as torch did before 1.6."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
