"""fastmoco: Momentum Contrast pretraining at the speed of the hardware.

The names below are imported when they are first used: most need torch, which takes seconds to load. No module of this
package may have the name of one of them: its import would put the module in its place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastmoco import _agent, _packages

if TYPE_CHECKING:
    from fastmoco.api.embedding import Embeddings, embed, load_embeddings
    from fastmoco.api.encoders import LoadedEncoder, load_encoder
    from fastmoco.api.pretraining import Run, pretrain
    from fastmoco.config import Config
    from fastmoco.recipes import recipe
    from fastmoco.trainer.callbacks import Callback, Training
    from shards.errors import UserError

    __version__: str

__all__ = [
    "Callback",
    "Config",
    "Embeddings",
    "LoadedEncoder",
    "Run",
    "Training",
    "UserError",
    "__version__",
    "embed",
    "load_embeddings",
    "load_encoder",
    "pretrain",
    "recipe",
]

_PLACES = {
    "fastmoco.api.embedding": ("Embeddings", "embed", "load_embeddings"),
    "fastmoco.api.encoders": ("LoadedEncoder", "load_encoder"),
    "fastmoco.api.pretraining": ("Run", "pretrain"),
    "fastmoco.config": ("Config",),
    "fastmoco.recipes": ("recipe",),
    "fastmoco.trainer.callbacks": ("Callback", "Training"),
    "shards.errors": ("UserError",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

_agent.end_with_agent()
_packages.end_on_interrupt()
# before any module imports `shards` or `pipelines`: a foreign package of that name would fail with an error of its own
_packages.check()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from shards._software import version_of

        value: Any = version_of("fastmoco")
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise AttributeError(f"module 'fastmoco' has no attribute {name!r}")
    globals()[name] = value  # __getattr__ is not asked again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
