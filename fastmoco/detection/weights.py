"""Load an encoder's weights into a detector, and account for every name."""

from __future__ import annotations

from dataclasses import dataclass

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from fastmoco.detection.models import encoder_name, normalisation, normalise_by
from fastmoco.layouts.encoders import EncoderWeights
from fastmoco.layouts.files import LayoutError


@dataclass(frozen=True)
class LoadReport:
    """How the names of file and detector matched.

    Attributes:
        source: the file, and its layout.
        loaded: names of the encoder's tensors.
        missing: names of the detector's own tensors, which keep their random values.
        unexpected: names of the head of the pretraining, which are left out.
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


def load_encoder(detector: GeneralizedRCNN, layout: str, source: str, weights: EncoderWeights) -> LoadReport:
    """Copy an encoder's tensors into a detector, which then normalises images as the encoder's training did.

    Args:
        detector: a detector on an encoder of the same architecture.
        layout: `c4` or `fpn`.
        source: name of the file, for the message.
        weights: as `read_encoder` returns them.

    Raises:
        LayoutError: the encoder takes images of one channel.
    """
    if weights.channels != 3:
        raise LayoutError(
            f"{source} holds an encoder of one channel, and detectors take photographs in colour; give an encoder of "
            "three channels"
        )
    own = detector.state_dict()
    places = {inside: name for name in own if (inside := encoder_name(layout, name)) is not None}
    # not strict, for the detector's own tensors. A name of the file that is unknown fails before, as a key of `places`;
    # names that the encoder lacks are refused by read_encoder
    detector.load_state_dict({places[name]: value for name, value in weights.tensors.items()}, strict=False)
    usual = normalisation(detector)  # of the architecture, for files that do not say it
    normalise_by(detector, weights.mean or usual["mean"], weights.std or usual["std"])
    missing = [name for name in own if encoder_name(layout, name) is None]
    return LoadReport(f"{source} ({weights.layout})", tuple(weights.tensors), tuple(missing), weights.left_out)
