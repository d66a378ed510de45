"""Momentum Contrast (arXiv 1911.05722, algorithm 1).

B: images of a rank, N: images of all ranks, D: feature dimension, K: keys in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fastmoco.config import Config
from fastmoco.kernels import infonce
from fastmoco.model.dictionary import Queue
from fastmoco.model.encoders import Encoder
from fastmoco.model.shuffle_bn import exchange, gather_unshuffled, permutation, split_batchnorm


@dataclass(frozen=True)
class Contrast:
    """What one step gives; every member is a scalar on the device.

    Attributes:
        loss: mean InfoNCE of the rank's queries, with gradient.
        accuracy: share of queries whose positive beats every negative, in 0..1.
        spread: standard deviation of the key features over the batch, times √D; near 1 for features
            spread over the sphere, near 0 where all collapse to one.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    spread: torch.Tensor


class MoCo(nn.Module):
    """Query encoder, slowly following key encoder, and queue.

    Without a process group the keys' images are shuffled only where BatchNorm is split, since a permutation
    within one BatchNorm group changes nothing.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        shape = config.arch, config.head, config.feature_dim, config.zero_init_residual
        self.query_encoder: nn.Module = Encoder(*shape)
        if config.bn_splits > 1:
            split_batchnorm(self.query_encoder, config.bn_splits)
        self.key_encoder: nn.Module = Encoder(*shape)
        if config.bn_splits > 1:
            split_batchnorm(self.key_encoder, config.bn_splits)
        self.key_encoder.load_state_dict(self.query_encoder.state_dict())
        self.key_encoder.requires_grad_(False)
        self.queue = Queue(config.queue_size, config.feature_dim)

    def distribute(self, device: torch.device) -> None:
        """Average the query encoder's gradients over the ranks from now on."""
        if dist.is_initialized():
            self.query_encoder = DistributedDataParallel(
                self.query_encoder,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=True,
            )

    @property
    def encoder(self) -> Encoder:
        """The query encoder itself, without any wrapper."""
        module = self.query_encoder
        if isinstance(module, DistributedDataParallel):
            module = module.module
        module = getattr(module, "_orig_mod", module)
        assert isinstance(module, Encoder)
        return module

    def parts(self) -> dict[str, nn.Module]:
        """The modules whose states make a checkpoint, by name, without any wrapper."""
        key_encoder = getattr(self.key_encoder, "_orig_mod", self.key_encoder)
        return {"query_encoder": self.encoder, "key_encoder": key_encoder, "queue": self.queue}

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """θ_k ← m θ_k + (1 − m) θ_q (arXiv 1911.05722, equation 2), in one fused pass."""
        parts = self.parts()
        torch._foreach_lerp_(
            list(parts["key_encoder"].parameters()),
            list(parts["query_encoder"].parameters()),
            1 - self.config.momentum_key,
        )

    @torch.no_grad()
    def encode_keys(self, images_BCHW: torch.Tensor, step: int) -> torch.Tensor:
        """Normalised keys of all ranks [N, D], in the order of the global batch."""
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if world_size == 1 and self.config.bn_splits == 1:
            return _unit(self.key_encoder(images_BCHW))
        permutation_N = permutation(self.config.seed, step, world_size * images_BCHW.shape[0])
        features_BD = self.key_encoder(exchange(images_BCHW, permutation_N))
        return gather_unshuffled(_unit(features_BD), permutation_N)

    def forward(self, query: torch.Tensor, key: torch.Tensor, ids: torch.Tensor, step: int) -> Contrast:
        """Contrast queries with their keys and the queue, then put the keys into the queue.

        Args:
            query: views [B, 3, H, W].
            key: other views of the same images [B, 3, H, W].
            ids: sample ids int64 [B]; a dictionary by sample needs them, the queue does not.
            step: number of this step in the run; the shuffle of the keys depends on it.
        """
        query_BD = _unit(self.query_encoder(query))
        self.update_key_encoder()
        keys_ND = self.encode_keys(key, step)
        rank, batch = dist.get_rank() if dist.is_initialized() else 0, query.shape[0]
        key_BD = keys_ND[rank * batch : (rank + 1) * batch]
        with torch.autocast(query.device.type, enabled=False):
            loss_B, hit_B = infonce(query_BD, key_BD, self.queue.negatives(), self.config.temperature)
        self.queue.enqueue(keys_ND)
        spread = keys_ND.std(0, correction=0).mean() * keys_ND.shape[1] ** 0.5
        return Contrast(loss_B.mean(), hit_B.float().mean(), spread)

    def state(self) -> dict[str, Any]:
        """State dictionaries of the parts."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` gave, strictly."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def _unit(features_BD: torch.Tensor) -> torch.Tensor:
    """Features of unit length, in float32 at least: half precision would blur the logits."""
    return F.normalize(features_BD.to(torch.promote_types(features_BD.dtype, torch.float32)), dim=1)
