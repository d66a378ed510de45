"""Recipes: the papers' settings as functions. The body of a recipe is its difference from another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from inspect import getdoc
from typing import Any

from fastmoco.changes import changed
from fastmoco.config import GROUPS, Config, ConfigError
from fastmoco.flags import flag, require
from pipelines.augmentation import ViewPair
from pipelines.views_file import recorded


def moco_v1() -> Config:
    """MoCo on ImageNet-1M (arXiv 1911.05722, section 3.3 and 4): ResNet-50, 200 epochs, lr ×0.1 at 120 and 160."""
    return Config(recipe="moco-v1")


def moco_v1_ig1b() -> Config:
    """MoCo on Instagram-1B (arXiv 1911.05722, section 4): batch 1024, 1.25 M iterations, lr ×0.9 every 62,500."""
    return replace(
        moco_v1(),
        recipe="moco-v1-ig1b",
        batch_size=1024,
        base_lr=0.12,
        base_batch_size=1024,
        epochs=None,
        steps=1_250_000,
        schedule="exponential",
        decay=0.9,
        # 64 million images, as the paper counts it, at this batch size
        decay_steps=62_500,
    )


def moco_v2() -> Config:
    """MoCo v2 (arXiv 2003.04297, section 3): MLP head, blur, cosine schedule, temperature 0.2."""
    return replace(moco_v1(), recipe="moco-v2", head="mlp", augmentation="v2", schedule="cosine", temperature=0.2)


def moco_v3_r50() -> Config:
    """MoCo v3 of a ResNet-50 (arXiv 2104.02057, algorithm 1 and section 4.1): no queue, batch 4096, LARS, 100 epochs.

    Other lengths have other settings in the paper's code: 300 epochs --base-lr 0.3 --warmup 0.0333; 1000 epochs
    --base-lr 0.3 --warmup 0.01 --weight-decay 1.5e-6 --momentum-key 0.996.
    """
    return replace(
        moco_v1(),
        recipe="moco-v3-r50",
        augmentation="v3",
        head="mlp-bn",
        predictor="mlp",
        feature_dim=256,
        zero_init_residual=True,
        batch_norm="sync",
        mechanism="batch",
        symmetric=True,
        temperature=1.0,
        momentum_key=0.99,
        momentum_key_schedule="cosine",
        optimiser="lars",
        batch_size=4096,
        base_lr=0.6,
        schedule="warmup-cosine",
        # 10 of 100 epochs
        warmup=0.1,
        weight_decay=1e-6,
        weight_decay_on="matrices",
        epochs=100,
    )


def moco_v3_vit_s() -> Config:
    """MoCo v3 of a ViT-S (arXiv 2104.02057, section 4.2): AdamW, 300 epochs with 40 of warm-up; batch 4096.

    The paper's code trains it with batch 1024, too, on fewer GPUs. As in that code, all parameters have weight decay.
    """
    return replace(
        moco_v3_r50(),
        recipe="moco-v3-vit-s",
        arch="moco_v3_vit_small",
        zero_init_residual=False,
        head_layers=3,
        predictor="mlp-bn",
        # crops of 8 % of the image or more, as the code has without --crop-min
        crop_min=0.08,
        temperature=0.2,
        optimiser="adamw",
        base_lr=1.5e-4,
        weight_decay=0.1,
        weight_decay_on="all",
        epochs=300,
        warmup=40 / 300,
    )


def moco_v3_vit_b() -> Config:
    """MoCo v3 of a ViT-B (arXiv 2104.02057, section 4.2): the settings of ViT-S."""
    return replace(moco_v3_vit_s(), recipe="moco-v3-vit-b", arch="moco_v3_vit_base")


def end_to_end() -> Config:
    """The end-to-end mechanism on MoCo v1's other settings (arXiv 1911.05722, figures 2a and 3).

    The number of negatives is the batch size less one, 255 to 1023 in the paper: set --batch-size; the rate scales with
    it.
    """
    return replace(moco_v1(), recipe="end-to-end", mechanism="end-to-end")


def memory_bank() -> Config:
    """The memory bank with InfoNCE on MoCo v1's other settings (arXiv 1911.05722, figures 2b and 3)."""
    return replace(moco_v1(), recipe="memory-bank", mechanism="memory-bank")


def demo() -> Config:
    """A small encoder that learns something visible in minutes on two CPU cores.

    Augmentation as in v1: v2's blur is sized for 224 pixels and erases the patterns of views this small.
    """
    return replace(
        moco_v2(),
        recipe="demo",
        arch="resnet10",
        augmentation="v1",
        # at 32 the last stage would be a single pixel; ten epochs at 40 reached 41 % kNN top-1, at 32 31 %
        image_size=40,
        batch_size=64,
        queue_size=1024,
        momentum_key=0.99,
        temperature=0.2,
        # at 0.06 the first epochs, with noise in the queue, spoilt what an untrained encoder has; at 0.012 kNN rises
        # from the start
        base_lr=0.012,
        base_batch_size=64,
        weight_decay=5e-4,
        # the demo ends within four minutes on two cores without AMX; its accuracy still rises with more
        epochs=17,
    )


def moco_fast() -> Config:
    """MoCo v2 for a few thousand photographs on a small machine: ResNet-18 at 64 pixels, residual blocks start at zero.

    `benchmarks/hour.py` compares its parts in equal time. On a CPU with AVX512-BF16, add --precision bf16.
    """
    return replace(
        moco_v2(),
        recipe="moco-fast",
        arch="resnet18",
        image_size=64,
        # short runs with small batches lose their first epochs without it (docs/training.md)
        zero_init_residual=True,
        batch_size=128,
        queue_size=2048,
        momentum_key=0.99,
        temperature=0.1,
        base_lr=0.06,
        base_batch_size=128,
        weight_decay=5e-4,
        epochs=50,
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "moco-v1": moco_v1,
    "moco-v1-ig1b": moco_v1_ig1b,
    "moco-v2": moco_v2,
    "moco-v3-r50": moco_v3_r50,
    "moco-v3-vit-s": moco_v3_vit_s,
    "moco-v3-vit-b": moco_v3_vit_b,
    "end-to-end": end_to_end,
    "memory-bank": memory_bank,
    "demo": demo,
    "moco-fast": moco_fast,
}


def recipe(name: str, **changes: Any) -> Config:
    """The settings of a recipe.

    Args:
        name: One of RECIPES, as "moco-v2".
        changes: Settings that are to have other values, by the names of the fields of Config.

    Raises:
        ConfigError: The recipe or a setting is unknown, or a value cannot work.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown --recipe {name!r}; known: {', '.join(RECIPES)}")
    config = changed(RECIPES[name](), changes)
    check_given(config)
    return config


def check_given(config: Config) -> None:
    """Raise ConfigError for a setting that was given, as it differs from the recipe's, and would have no effect."""
    base = RECIPES[config.recipe]()
    batch, adamw = config.mechanism == "batch", config.optimiser == "adamw"
    for unused, name, why in (
        (batch, "queue_size", "--mechanism batch keeps no keys"),
        (batch, "bank_momentum", "--mechanism batch has no bank"),
        (adamw, "momentum", "--optimiser adamw has momenta of its own"),
    ):
        given = getattr(config, name) != getattr(base, name)
        require(not (unused and given), f"{flag(name)} {getattr(config, name)} has no effect: {why}; leave it out")


def as_table(config: Config) -> str:
    """All settings by groups, as text; those that differ from moco-v1 with the value there."""
    base, title = moco_v1(), getdoc(RECIPES[config.recipe]) or ""
    lines = [f"{config.recipe}: {title.partition(chr(10))[0]}"]
    grouped = {f.name for kind in GROUPS.values() for f in fields(kind)}
    names = {"": [f.name for f in fields(config) if f.name not in grouped]}
    names |= {group: [f.name for f in fields(kind)] for group, kind in GROUPS.items()}
    for group, members in names.items():
        lines += ["", f"{group}:"] if group else [""]
        for name in members:
            value, other = getattr(config, name), getattr(base, name)
            line = f"  {flag(name):<24} {_in_words(value):<18}"
            lines.append((line + (f" moco-v1: {_in_words(other)}" if value != other else "")).rstrip())
    return "\n".join(lines + (_views(config.views) if isinstance(config.views, ViewPair) else []))


def _views(pair: ViewPair) -> list[str]:
    """The numbers of views from a file, as lines."""
    numbers = recorded(pair)
    lines = ["", f"views of {numbers['file'] or 'the settings'}: query, key"]
    for name, query in numbers["query"].items():
        query, key = (_number(each) for each in (query, numbers["key"][name]))
        lines.append(f"  {name:<24} {query:<18} {key}")
    return lines


def _number(value: float | list[float]) -> str:
    return " ".join(f"{each:.4g}" for each in (value if isinstance(value, list) else [value]))


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    named = value is None or isinstance(value, bool)  # 0 and 1 are keys of the table, too
    return {True: "on", False: "off", None: "none"}[value] if named else str(value)
