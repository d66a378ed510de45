"""The optimisers of pretraining. Their settings come from the run, not from the checkpoint that it continues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastmoco.config import Config

TRUST = 0.001
"""LARS's trust coefficient (arXiv 1708.03888, section 4); that of MoCo v3's and BYOL's code."""


def new_optimiser(parameters: Iterable[nn.Parameter], config: Config, fused: bool) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Args:
        parameters: What is trained.
        config: The run's settings. With `weight_decay_on` `matrices`, parameters of one dimension at most (biases and
            the weights of norms) are a group of their own, without decay.
        fused: Update all parameters of SGD or AdamW in one launch. LARS has no such kernel.
    """
    trained = list(parameters)
    if config.optimiser == "lars":
        return LARS(_groups(trained, config), config)
    if config.optimiser == "adamw":
        return AdamW(_groups(trained, config), config, fused)
    return MomentumSGD(_groups(trained, config), config, fused)


def _groups(parameters: list[nn.Parameter], config: Config) -> list[Any]:
    """Groups of parameters with and without weight decay; one of all where there is no difference."""
    if config.weight_decay_on == "all":
        return parameters
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    others = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = {"params": matrices}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]


class _OfRun(torch.optim.Optimizer):
    """Loads the state of a checkpoint without its settings."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load momentum; the settings stay this run's, as does the choice between fused and not."""
        settings = self.state_dict()["param_groups"]
        # set at the next step; a run that has none left saves the state as it was
        for group, saved in zip(settings, state_dict["param_groups"], strict=True):
            group["lr"] = saved["lr"]
        super().load_state_dict({"state": state_dict["state"], "param_groups": settings})


class MomentumSGD(_OfRun, torch.optim.SGD):
    """SGD with momentum.

    Args:
        parameters: What is trained, or groups of it.
        config: The run's settings.
        fused: Update all parameters in one launch, which under fp16 also reads on the device whether a gradient has
            overflowed; otherwise the host waits for that at every step. Not yet run on a GPU.
    """

    def __init__(self, parameters: list[Any], config: Config, fused: bool) -> None:
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `_OfRun.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._start_momentum()


class AdamW(_OfRun, torch.optim.AdamW):
    """AdamW (arXiv 1711.05101) with torch's β 0.9 and 0.999.

    Args:
        parameters: What is trained, or groups of it.
        config: The run's settings.
        fused: As of `MomentumSGD`.
    """

    def __init__(self, parameters: list[Any], config: Config, fused: bool) -> None:
        # on a CPU its loop over the tensors is the fastest that torch has besides the fused one
        super().__init__(parameters, lr=0.0, weight_decay=config.weight_decay, fused=fused or None)


class LARS(_OfRun):
    """LARS with momentum, as MoCo v3 and BYOL use it.

    With g the gradient of a weight w, λ the decay and γ the rate: u ← g + λ w; u ← TRUST ‖w‖ / ‖u‖ u;
    v ← μ v + u; w ← w − γ v (arXiv 1708.03888, algorithm 1, with the rate outside of the momentum). Where a norm is 0,
    u is not scaled. Parameters of one dimension at most, biases and the weights of norms, are not scaled either
    (arXiv 2006.07733, section 3.2).

    The norms stay on the device: the host waits for nothing, except under fp16 for the scaler's look at the gradients.

    Args:
        parameters: What is trained, or groups of it.
        config: The run's settings.
    """

    def __init__(self, parameters: list[Any], config: Config) -> None:
        defaults = {"lr": 0.0, "momentum": config.momentum, "weight_decay": config.weight_decay}
        super().__init__(parameters, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient; the gradients stay as they are."""
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            for scaled in (True, False):
                parameters: list[torch.Tensor] = [each for each in trained if (each.dim() > 1) is scaled]
                if parameters:
                    self._update(parameters, group, scaled)

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any], scaled: bool) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all have one
        updates = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if scaled:
            torch._foreach_mul_(updates, _trust(parameters, updates))
        momentum = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(momentum, group["momentum"])
        torch._foreach_add_(momentum, updates)
        torch._foreach_add_(parameters, momentum, alpha=-group["lr"])


def _trust(parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """What each update is multiplied with, scalars on the device."""
    weights = torch.stack(torch._foreach_norm(parameters))
    norms = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where((weights > 0) & (norms > 0), TRUST * weights / norms, 1.0)
    return list(ratios.unbind())
