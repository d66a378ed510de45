"""Momentum Contrast (arXiv 1911.05722, algorithm 1), and the mechanisms that the paper compares it with.

B: images of a rank, N: images of all ranks, D: feature dimension, K: keys in the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fastmoco.config import Config
from fastmoco.devices import to_device
from fastmoco.model.batchnorm import from_equal_statistics, has_batchnorm
from fastmoco.model.building import new_dictionary, new_encoder
from fastmoco.model.dictionary import Batch
from fastmoco.model.encoders import PREDICTOR, Encoder
from fastmoco.model.rounded import RoundedEncoder
from fastmoco.model.shuffle_bn import gather_unshuffled, permutation, start_exchange
from fastmoco.ranks.averaging import averaged
from fastmoco.ranks.exchange import all_gather_rows
from fastmoco.ranks.world import rank_and_size
from fastmoco.spans import span


@dataclass(frozen=True)
class Contrast:
    """The result of one step; every member is a scalar on the device.

    Attributes:
        loss: Mean InfoNCE of the rank's queries, times `Config.loss_scale`, with gradient; without it if `accumulate`
            made the backward passes.
        accuracy: Share of queries whose positive beats every negative, in 0..1.
        spread: Standard deviation of the key features over the batch, times √D: near 1 for features spread over the
            sphere, near 0 for collapsed ones.
        grad_norm: Euclidean norm of the gradient, averaged over the ranks, without the scale of fp16: infinite or not a
            number if the gradient is. None before the backward pass.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    spread: torch.Tensor
    grad_norm: torch.Tensor | None = None


class MoCo(nn.Module):
    """Query encoder, key encoder, and dictionary.

    The key encoder starts as a copy of the query encoder, without its predictor. With the queue, and with the keys of
    the batch, it is a moving average of the query encoder; end to end it is a second encoder with its own gradients, as
    in figure 2a; the memory bank has no key encoder.

    On one device key images are shuffled only if BatchNorm is split: a permutation within one BatchNorm group changes
    nothing.
    """

    def __init__(self, config: Config, samples: int | None = None) -> None:
        """Build the model.

        Args:
            config: Settings of the run.
            samples: Number of images in the set, for the memory bank.
        """
        super().__init__()
        self.config = config
        self.query_encoder: nn.Module = new_encoder(config)
        self.key_encoder: nn.Module | None = None
        if config.mechanism != "memory-bank":
            self.key_encoder = new_encoder(config, of_keys=True)
            # equal at the start, as in the original code; with m 0.999 any difference would take thousands of steps to
            # fade
            self.copy_to_key_encoder()
            if config.mechanism != "end-to-end":  # there, what is frozen is frozen in both
                self.key_encoder.requires_grad_(False)
        # of an encoder without BatchNorm, features do not depend on the company of an image
        norms = self.key_encoder is not None and has_batchnorm(self.key_encoder)
        self.shuffles = config.batch_norm == "shuffle" and norms
        self._rounded_keys: RoundedEncoder | None = None
        self.dictionary = new_dictionary(config, samples)

    def copy_to_key_encoder(self) -> None:
        """Copy the query encoder's state to the key encoder, if there is one."""
        if self.key_encoder is not None:
            state = self.encoder.state_dict()
            _bare(self.key_encoder).load_state_dict(
                {name: value for name, value in state.items() if not name.startswith(PREDICTOR)}
            )

    def compile_encoders(self) -> None:
        """Compile the encoders with torch.compile."""
        # by itself torch would make the sides of the views variables at the second size, which costs speed at all later
        # ones: rather once for each size
        dynamic = False if self.config.early_sizes else None
        # torch counts the graphs of both encoders together, and beyond its limit, of eight, it would compile no more
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 + 2 * len(self.config.early_sizes))
        self.query_encoder = torch.compile(self.query_encoder, dynamic=dynamic)  # pyright: ignore[reportAttributeAccessIssue]
        if self.key_encoder is not None:
            self.key_encoder = torch.compile(self.key_encoder, dynamic=dynamic)  # pyright: ignore[reportAttributeAccessIssue]

    def round_key_weights(self, dtype: torch.dtype) -> None:
        """From now on round the key encoder's weights to autocast's dtype in one launch a step.

        Only with the queue or the keys of the batch: end to end the key encoder has gradients, and the memory bank has
        none.
        """
        if self.config.mechanism in ("queue", "batch") and isinstance(self.key_encoder, Encoder):
            self._rounded_keys = RoundedEncoder(self.key_encoder, dtype)

    def distribute(self, device: torch.device) -> None:
        """Average gradients over the ranks from now on, for the encoders that have gradients."""
        if not dist.is_initialized():
            return
        # gradient_as_bucket_view: gradients are stored in the buffers that are averaged, not beside them
        self.query_encoder = averaged(self.query_encoder, device, gradient_as_bucket_view=True, static_graph=True)
        # DistributedDataParallel refuses a module without gradients, as the key encoder is with the queue
        if self.key_encoder is not None and self.config.mechanism == "end-to-end":
            self.key_encoder = averaged(self.key_encoder, device, gradient_as_bucket_view=True, static_graph=True)

    @property
    def encoder(self) -> Encoder:
        """The query encoder without wrappers."""
        module = _bare(self.query_encoder)
        assert isinstance(module, Encoder)
        return module

    def parts(self) -> dict[str, nn.Module]:
        """The modules whose states make a checkpoint, by name, without wrappers."""
        parts: dict[str, nn.Module] = {"query_encoder": self.encoder}
        if self.key_encoder is not None:
            parts["key_encoder"] = _bare(self.key_encoder)
        if self.dictionary.part is not None:
            parts[self.dictionary.part] = self.dictionary
        return parts

    def shared(self) -> dict[str, torch.Tensor]:
        """Tensors that must be equal on all ranks, by name: all except BatchNorm statistics of a rank's own images."""
        own = () if self.config.batch_norm == "sync" else ("running_mean", "running_var")
        return {
            f"{part}.{name}": tensor
            for part, module in self.parts().items()
            for name, tensor in module.state_dict().items()
            if not name.endswith(own)
        }

    @torch.no_grad()
    def update_key_encoder(self, momentum: float) -> None:
        """θ_k ← m θ_k + (1 − m) θ_q (arXiv 1911.05722, equation 2), in one fused pass. Buffers are not averaged."""
        # parameters alone, as in the original code: running statistics come from the key encoder's own batches, and are
        # read in evaluation only
        parts = self.parts()
        query = dict(parts["query_encoder"].named_parameters())
        keys = dict(parts["key_encoder"].named_parameters())
        torch._foreach_lerp_(list(keys.values()), [query[name] for name in keys], 1 - momentum)

    def encode_keys(self, images_BCHW: torch.Tensor, step: int) -> torch.Tensor:
        """Normalised keys of all ranks [N, D], in the order of the global batch."""
        return self._start_keys(images_BCHW, step)()

    def _start_keys(self, images_BCHW: torch.Tensor, step: int) -> Callable[[], torch.Tensor]:
        """Start to send key images to the ranks that encode them; the returned function encodes them."""
        encoder = self._rounded_keys or self.key_encoder
        assert encoder is not None
        _, world_size = rank_and_size()
        groups = world_size * self.config.accumulate * self.config.bn_splits
        if groups == 1 or not self.shuffles:

            def plain() -> torch.Tensor:
                keys_BD = self._encode_parts(encoder, images_BCHW)
                with span("shuffle"):
                    return all_gather_rows(keys_BD)

            return plain
        # of the global batch: each rank derives all of it from (seed, step), so none has to be sent
        permutation_N = permutation(self.config.seed, step, world_size * images_BCHW.shape[0], groups)
        device = images_BCHW.device.type
        if torch.is_autocast_enabled(device):  # half the bytes to send; the first convolution rounds them anyway
            images_BCHW = images_BCHW.to(torch.get_autocast_dtype(device))
        arriving = start_exchange(images_BCHW, permutation_N)

        def shuffled() -> torch.Tensor:
            with span("shuffle"):
                images = arriving()
            keys_BD = self._encode_parts(encoder, images)
            with span("shuffle"):
                return gather_unshuffled(keys_BD, permutation_N)

        return shuffled

    def _encode_parts(self, encoder: Callable[[torch.Tensor], torch.Tensor], images_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalised keys of this rank's images, by one pass for each micro-batch."""
        with span("key forward"):
            parts = images_BCHW.chunk(self.config.accumulate)
            if len(parts) == 1:
                return unit(encoder(images_BCHW))
            return torch.cat(
                [unit(encoder(part)) for part in from_equal_statistics(self.parts()["key_encoder"], parts)]
            )

    def keys(self, starts: Sequence[Callable[[], torch.Tensor]], queries: Sequence[torch.Tensor], momentum: float
    ) -> list[torch.Tensor]:  # fmt: skip
        """Keys [N, D] for each of the queries: what the dictionary contrasts with and stores."""
        if self.config.mechanism == "memory-bank":
            return [all_gather_rows(query_BD.detach()) for query_BD in queries]
        if self.config.mechanism == "end-to-end":
            return [keys() for keys in starts]
        with span("momentum update"):
            self.update_key_encoder(
                momentum
            )  # before the keys, as in the original code; algorithm 1 has it after the step
        with torch.no_grad():
            return [keys() for keys in starts]

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, ids: torch.Tensor, step: int, momentum_key: float
    ) -> Contrast:
        """Contrast queries with their keys and the dictionary's, then store the keys in it.

        Args:
            query: Views [B, C, H, W].
            key: Other views of the same images [B, C, H, W].
            ids: Sample ids, int64 [B]; only the memory bank uses them.
            step: Number of this step in the run; decides the shuffle of the keys.
            momentum_key: Momentum m of the key encoder at this step.
        """
        views, starts = self.start(query, key, step)
        with span("query forward"):
            queries = [unit(self.query_encoder(view)) for view in views]
        keys = self.keys(starts, queries, momentum_key)
        batch = self.batch(ids, step, query.device)
        contrasts = [self.contrast(*pair, batch) for pair in zip(queries, keys, strict=True)]
        return self.finish(keys, contrasts, batch)

    def start(self, query: torch.Tensor, key: torch.Tensor, step: int
    ) -> tuple[tuple[torch.Tensor, ...], list[Callable[[], torch.Tensor]]]:  # fmt: skip
        """The views to encode as queries, and for each a function that encodes its keys.

        Key images travel between the ranks until the function is called.
        """
        views = 2 if self.config.symmetric else 1
        keyed = (key, query)[:views] if self.key_encoder is not None else ()
        with span("shuffle"):
            return (query, key)[:views], [self._start_keys(view, step) for view in keyed]

    def batch(self, ids: torch.Tensor, step: int, device: torch.device) -> Batch:
        """The images of a step, by the ids of this rank's."""
        rank, _ = rank_and_size()
        own = slice(rank * len(ids), (rank + 1) * len(ids))
        return Batch(own, step, all_gather_rows(to_device(ids, device)) if self.dictionary.by_sample else None)

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """See `Dictionary.contrast`."""
        with span("loss"), torch.autocast(query_BD.device.type, enabled=False):  # logits in float32
            return self.dictionary.contrast(query_BD, keys_ND, batch, self.config.temperature)

    def finish(
        self, keys: Sequence[torch.Tensor], contrasts: Sequence[tuple[torch.Tensor, torch.Tensor]], batch: Batch
    ) -> Contrast:
        """Store the keys of a step, and sum it up.

        Args:
            keys: [N, D] for each view.
            contrasts: Losses and hits of `contrast`, of all queries of this rank.
            batch: The images.
        """
        keys_ND = torch.cat(list(keys)).detach()
        # after the loss, as in algorithm 1: in the queue, a query's own key would be one of its negatives. The backward
        # pass comes later still, but reads no dictionary that is updated in place (see kernels/infonce_operator.py)
        with span("enqueue"):
            self.dictionary.update(keys_ND, batch)
        loss, hit = (torch.cat(values) for values in zip(*contrasts, strict=True))
        spread = keys_ND.std(0, correction=0).mean() * keys_ND.shape[1] ** 0.5
        return Contrast(loss.mean() * self.config.loss_scale, hit.float().mean(), spread)

    def state(self) -> dict[str, Any]:
        """State dictionaries of the parts."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load the result of `state`, strictly."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def _bare(module: nn.Module) -> nn.Module:
    # the outer wrapper first: encoders are compiled before they are distributed
    if isinstance(module, DistributedDataParallel):
        module = module.module
    # where torch.compile keeps the module that it wraps
    return getattr(module, "_orig_mod", module)


def unit(features_BD: torch.Tensor) -> torch.Tensor:
    """Features of unit length, in float32 or float64: logits of half precision would be too coarse."""
    return F.normalize(features_BD.to(torch.promote_types(features_BD.dtype, torch.float32)), dim=1)
