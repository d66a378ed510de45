"""An encoder's weights into a detector, with every name accounted for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastmoco.detection.models import encoder_name
from fastmoco.layouts.encoders import EncoderWeights


@dataclass(frozen=True)
class Entered:
    """What became of the names.

    Attributes:
        source: the file, and its layout.
        loaded: the encoder's names whose values the detector has now.
        missing: the detector's names that the file has nothing for; they keep their random values.
        unexpected: the file's names that the detector has no place for: the head of the pretraining.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        parts = sorted({".".join(name.split(".")[:2]) for name in self.missing})
        return (
            f"{self.source}: loaded {len(self.loaded)} tensors of the encoder; "
            f"missing: {len(self.missing)}, all of the detector's own parts ({', '.join(parts)}); "
            f"unexpected: {', '.join(self.unexpected) or 'none'}"
        )


def enter(detector: nn.Module, layout: str, source: str, weights: EncoderWeights) -> Entered:
    """Copy an encoder's tensors to their places in a detector.

    Args:
        detector: whose encoder gets the values; of the weights' architecture.
        layout: `c4` or `fpn`.
        source: what the messages call the file.
        weights: as `read_encoder` returns them.
    """
    own = detector.state_dict()
    places = {inside: name for name in own if (inside := encoder_name(layout, name)) is not None}
    detector.load_state_dict({places[name]: value for name, value in weights.tensors.items()}, strict=False)
    missing = [name for name in own if encoder_name(layout, name) is None]
    return Entered(f"{source} ({weights.layout})", tuple(weights.tensors), tuple(missing), weights.left_out)
