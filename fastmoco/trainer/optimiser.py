"""The optimiser of pretraining: SGD with momentum, in one launch on GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmoco.config import Config


class MomentumSGD(torch.optim.SGD):
    """SGD whose settings come from the run, not from the checkpoint that it continues.

    Args:
        parameters: what is trained.
        config: the run's settings.
        fused: update all parameters in one launch, which under fp16 also reads on the device whether a gradient has
            overflowed; otherwise the host waits for that at every step. Not yet run on a GPU.
    """

    def __init__(self, parameters: list[nn.Parameter], config: Config, fused: bool) -> None:
        # the learning rate is set at each step
        momentum, decay = config.momentum, config.weight_decay
        super().__init__(parameters, lr=0.0, momentum=momentum, weight_decay=decay, fused=fused or None)
        self._start_momentum()

    def _start_momentum(self) -> None:
        # torch's fused SGD allocates momentum in its first step and fills it there, unless that step is skipped because
        # a gradient has overflowed, as is usual in the first steps of fp16; the next one would read what it never wrote
        for group in self.param_groups:
            if group["fused"] and group["momentum"]:
                for parameter in group["params"]:
                    # of the parameter's strides, which the kernel requires and a checkpoint from elsewhere may not have
                    momentum = torch.zeros_like(parameter)
                    if "momentum_buffer" in self.state[parameter]:
                        momentum.copy_(self.state[parameter]["momentum_buffer"])
                    self.state[parameter]["momentum_buffer"] = momentum

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load momentum; the settings stay this run's, as does the choice between fused and not."""
        settings = self.state_dict()["param_groups"]
        # set at the next step; a run that has none left saves the state as it was
        for group, saved in zip(settings, state_dict["param_groups"], strict=True):
            group["lr"] = saved["lr"]
        super().load_state_dict({"state": state_dict["state"], "param_groups": settings})
        self._start_momentum()
