"""One training step: forward, backward, update. The training loop and the benchmarks share it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fastmoco.architectures import by_timm
from fastmoco.checkpoints.finite import floating
from fastmoco.config import Config
from fastmoco.devices import autocast_dtype, seed_step
from fastmoco.model.accumulation import accumulate
from fastmoco.model.batchnorm import recomputing
from fastmoco.model.encoders import small_size
from fastmoco.model.moco import Contrast, MoCo
from fastmoco.ranks.averaging import settle_buckets
from fastmoco.ranks.world import rank_and_size
from fastmoco.spans import span
from fastmoco.trainer.graphs import capture_encoders, check_device
from fastmoco.trainer.optimiser import new_optimiser
from fastmoco.trainer.schedule import lr_at, momentum_key_at
from pipelines import TwoViews


class TrainStep:
    """Model, optimiser and gradient scaler of a run, and the step that updates them.

    Args:
        config: the run's settings.
        device: where the model lives.
        total_steps: length of the run; the learning rate and the key encoder's momentum depend on it.
        samples: images of the set; the memory bank needs them.

    Attributes:
        model: the MoCo model, channels-last.
        optimiser: over the parameters of the query encoder, and with end-to-end of the key encoder.
        scaler: gradient scaler; it has no effect unless the precision is fp16.
        dtype: autocast type, None for float32.
    """

    def __init__(self, config: Config, device: torch.device, total_steps: int, samples: int | None = None) -> None:
        if config.cuda_graphs:
            check_device(device)
        self.config, self.device, self.total_steps = config, device, total_steps
        self.dtype = autocast_dtype(config.precision, device)
        # all ranks start equal by the seed: DistributedDataParallel would send the query encoder only
        torch.manual_seed(config.seed)
        model = MoCo(config, samples).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # on a CPU the fused one rounds otherwise (products and sums in one), and the launches that it saves cost little
        self.optimiser = new_optimiser(trained, config, fused=device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        if config.compile:
            self.model.compile_encoders()
        self.model.train()
        if config.cuda_graphs:
            capture_encoders(self.model, self._blank_images(small=False), self.dtype)
        # torch.compile and the captured graphs run the casts with the rest
        elif self.dtype is not None and not config.compile:
            self.model.round_key_weights(self.dtype)
        self.model.distribute(device)
        self._settle_buckets()

    def _blank_images(self, small: bool) -> torch.Tensor:
        """Black images of the dtype and strides of every micro-batch, and unless `small` of its shape."""
        config, (_, world_size) = self.config, rank_and_size()
        # as little as BatchNorm accepts: two images a group
        count, side = 2 * config.bn_splits, small_size(config.arch, config.image_size)
        if not small:
            count, side = config.per_rank_batch(world_size) // config.accumulate, config.image_size
        dtype = self.dtype or torch.get_default_dtype()  # as the pipelines return them
        # permuted: torch's channels-last format does not fix the strides of one channel, which the pipelines have so
        images = torch.zeros(count, side, side, config.channels, dtype=dtype, device=self.device)
        return images.permute(0, 3, 1, 2)

    def _settle_buckets(self) -> None:
        # small ones do, since only the order of the gradients counts. But an encoder would be compiled once more for
        # another shape, and a captured one has only the real shape
        images = self._blank_images(small=not (self.config.compile or self.config.cuda_graphs))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            for encoder in (self.model.query_encoder, self.model.key_encoder):
                if isinstance(encoder, DistributedDataParallel):
                    settle_buckets(encoder, lambda encoder=encoder: encoder(images).sum())

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        return lr_at(self.config, step, self.total_steps)

    def __call__(self, batch: TwoViews, step: int) -> Contrast:
        """Run step number `step` on a batch; the result's scalars stay on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr(step)
        self._clear_gradients()
        if by_timm(self.config.arch):  # whose modules may draw, as for --drop-path: a resumed run draws the same
            seed_step(self.config.seed, step, rank_and_size()[0])
        momentum_key = momentum_key_at(self.config, step, self.total_steps)
        images = batch.query, batch.key, batch.ids
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            if self.config.accumulate > 1:
                contrast = accumulate(self.model, *images, step, momentum_key, self._backward)
            else:
                contrast = self.model(*images, step, momentum_key)
        if self.config.accumulate == 1:
            self._backward(contrast.loss)
        grad_norm = self._grad_norm()
        with span("optimiser"):
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return replace(contrast, grad_norm=grad_norm)

    def _clear_gradients(self) -> None:
        if self.config.accumulate == 1:
            self.optimiser.zero_grad(set_to_none=True)
            return
        # the passes add to them in place: in the buffers that are averaged over the ranks, else there would be two
        # copies; and CUDA graphs write each pass's gradients to one place, which must not be the sum's
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.optimiser.zero_grad(set_to_none=False)

    def _backward(self, loss: torch.Tensor) -> None:
        # not in autocast, which would round the products of our own backward passes
        with span("backward"), recomputing(), torch.autocast(self.device.type, enabled=False):
            self.scaler.scale(loss).backward()

    def _grad_norm(self) -> torch.Tensor:
        parameters = (parameter for group in self.optimiser.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        return norm / self.scale() if self.scaler.is_enabled() else norm

    def scale(self) -> torch.Tensor:
        """The factor of fp16's gradients, 1 for other precisions; a scalar on the device."""
        # not get_scale, which waits for the device
        return self.scaler.scale(torch.ones((), device=self.device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """All floating-point tensors that later steps depend on, by name."""
        momentum = {"state": list(self.optimiser.state.values())}  # its state_dict names them so, too
        return floating({**self.model.state(), "optimiser": momentum})

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, besides the position in the data."""
        return {
            **self.model.state(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.model.load_state(state)
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # empty without fp16, as which a run may continue
            self.scaler.load_state_dict(state["scaler"])
