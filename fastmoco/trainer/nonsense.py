"""Warnings of figures that are finite and still say that a training does not learn what it should."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Mapping

from fastmoco.runs.warnings import passed, warn

VARIANCE = 1e6
"""Running variance of a BatchNorm channel. In sound runs of the recipes it stayed below 100; at this value activations
are some thousand, and their squares far above what fp16 can hold."""
PATIENT_STEPS = 2000
"""Steps after which the loss is judged: with the papers' settings it leaves chance within an epoch of 5,000 steps, and
with small sets within some hundred. Before, a new memory bank's random entries, and rates for larger batches, take it
far above chance: by 2.8 nats in a sound run."""
NEAR_CHANCE = 0.02
"""Nats. As in the report: an encoder that is nearer to chance has learned next to nothing."""
ABOVE_CHANCE = 2.0
"""Nats: the keys of other images are 7 times as likely as at chance, where features at random are."""
SPIKE, LINES = 10.0, 20
"""Times the median norm of the gradient in the last lines, and the number of these that it takes."""
LEAST_SCALE = 1.0
"""Scale of fp16's gradients. It starts at 65,536; below 1, gradients above 65,504 overflow, as in no sound training."""
CERTAIN, NO_LOSS = 0.999, 0.05
"""Accuracy, and loss in nats, with a full queue at which nothing is left to learn. Published encoders stay far from
both."""


class Nonsense:
    """Looks at the figures of the log lines of one run, on rank 0.

    Args:
        chance: the loss at chance.
        scale: what the mean InfoNCE is multiplied with in the loss, see `Config.loss_scale`; limits in nats are, too.
        patient_steps: steps after which the loss is judged.
    """

    def __init__(self, chance: float, scale: float = 1.0, patient_steps: int = PATIENT_STEPS) -> None:
        self._chance, self._scale, self._patient_steps = chance, scale, patient_steps
        self._norms: deque[float] = deque(maxlen=LINES)

    def look(self, figures: Mapping[str, float], step: int) -> None:
        """Warn of what the figures of a line show, and of what has passed.

        Args:
            figures: means over the steps since the line before: those of metrics.jsonl, and `variance`, the largest
                running variance.
            step: steps done.
        """
        found = dict(self._found(figures, step))
        for name in ("variance", "chance", "above_chance", "gradient_spike", "fp16_scale", "no_loss"):
            if name in found:
                warn(name, f"{found[name]} (step {step})")
            else:
                passed(name)
        self._norms.append(figures["grad_norm"])

    def _found(self, figures: Mapping[str, float], step: int) -> Iterator[tuple[str, str]]:
        loss, chance, norm = figures["loss"], self._chance, figures["grad_norm"]
        full, variance = figures["queue_fill"] >= 1, figures["variance"]
        settled = full and step >= self._patient_steps
        if variance > VARIANCE:
            remedy = "lower --lr, or raise --weight-decay"
            yield (
                "variance",
                f"a BatchNorm's running variance is {variance:.1e}: activations grow without bound; {remedy}",
            )
        if settled and abs(loss - chance) < NEAR_CHANCE * self._scale:
            said = f"the loss is {loss:.3f}, which is chance: the encoder does not tell an image from others"
            tried = "another --lr or --warmup, or for a ResNet of torchvision --zero-init-residual"
            yield "chance", f"{said}; look at views.png, and try {tried}"
        if settled and loss > chance + ABOVE_CHANCE * self._scale:
            said = f"the loss is {loss:.2f}, far above chance ({chance:.2f})"
            yield "above_chance", f"{said}: an image's own key is among the least similar ones; lower --lr"
        usual = statistics.median(self._norms) if len(self._norms) == LINES else 0.0
        if usual and norm > SPIKE * usual:
            said = f"the gradient's norm is {norm:.3g}, {norm / usual:.0f} times the usual one"
            yield "gradient_spike", f"{said}; if that recurs, lower --lr"
        scale = figures.get("scale", LEAST_SCALE)
        if scale < LEAST_SCALE:
            said = f"the scale of fp16's gradients has fallen to {scale:.2g}: they overflow again and again"
            yield "fp16_scale", f"{said}; use --precision bf16 or fp32, or lower --lr"
        if full and figures["accuracy"] >= CERTAIN and loss < NO_LOSS * self._scale:
            said = f"the accuracy is {100 * figures['accuracy']:.1f} % and the loss {loss:.3f}"
            why = "something other than the image gives its key away: BatchNorm (--bn-splits), or equal views"
            yield "no_loss", f"{said}: {why}"
