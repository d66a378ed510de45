"""Settings that follow the encoder where the user has not given them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fastmoco.architectures import by_timm
from fastmoco.config import Config
from fastmoco.flags import named, require
from fastmoco.model.encoders import fixed_size, own_settings, usual_size
from fastmoco.model.timm_encoders import check_size
from fastmoco.views import early_sizes


def own_size(arch: str, given: Collection[str], image_size: int) -> int:
    """The image size that `following_encoder` will give, before there are settings whose sizes are checked by it.

    Args:
        arch: an encoder of timm.
        given: names of the settings that the user gave.
        image_size: that of the recipe, or the user's.

    Raises:
        ConfigError: timm is not installed, or has no such encoder.
    """
    stays = "image_size" in given or image_size != Config.image_size
    return image_size if stays else usual_size(arch)


def following_encoder(config: Config, given: Collection[str]) -> Config:
    """The settings with what is an encoder's own: image size, mean and standard deviation of one of timm's.

    Args:
        config: settings of a recipe, with changes.
        given: names of the settings that the user gave; these stay, and so does a recipe's image size other than 224.

    Raises:
        ConfigError: timm is not installed, or has no such encoder.
    """
    usual = Config(channels=config.channels)
    own = {name: value for name, value in own_settings(config.arch, config.channels).items() if name not in given}
    config = replace(config, **{name: value for name, value in own.items() if vars(config)[name] == vars(usual)[name]})
    check_early_sizes(config)
    return config


def check_early_sizes(config: Config) -> None:
    """Raise ConfigError for early sizes that the encoder does not take."""
    sizes = early_sizes(config)
    require(
        not (sizes and fixed_size(config.arch)),
        f"--early-sizes {' '.join(config.early_sizes)} does not fit --arch {config.arch}, whose positions are fixed to "
        "images of one size; leave it out, or use an encoder of convolutions",
    )
    for size, _ in sizes if by_timm(config.arch) else ():
        with named("--early-sizes"):
            check_size(config.arch, size)
