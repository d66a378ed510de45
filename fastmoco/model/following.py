"""Settings that follow the encoder where the user has not given them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fastmoco.config import Config
from fastmoco.model.encoders import own_settings


def following_encoder(config: Config, given: Collection[str]) -> Config:
    """The settings with what is an encoder's own: image size, mean and standard deviation of one of timm's.

    Args:
        config: settings of a recipe, with changes.
        given: names of the settings that the user gave; these stay, and so does a recipe's image size other than 224.

    Raises:
        ConfigError: timm is not installed, or has no such encoder.
    """
    usual = Config()
    own = {name: value for name, value in own_settings(config.arch).items() if name not in given}
    return replace(config, **{name: value for name, value in own.items() if vars(config)[name] == vars(usual)[name]})
