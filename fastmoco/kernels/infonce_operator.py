"""InfoNCE over a long dictionary without storing its logits.

With x = log-sum-exp of the negative logits − positive logit, the loss is log(1 + eˣ), and its gradient for the query
is σ(x) · (softmax-weighted mean of the negatives − positive key) / τ. One pass over the dictionary computes both. So
backward is one multiplication, only [N, D] is saved for it, and the queue may be overwritten before it runs.

N: queries, K: negatives, D: feature dimension, C: negatives in a chunk.
"""

from __future__ import annotations

import math

import torch

from fastmoco.kernels.dispatch import implementation

CPU_CHUNK = 2048
"""Negatives per chunk on a CPU: the N × CPU_CHUNK logits of a batch stay in its caches."""
GPU_LOGITS = 16 << 20
"""Logits of a chunk on a GPU, 64 MiB of them in float32. Its caches would hold too few to matter; what counts is the
number of launches, about ten a chunk. With 256 queries the default queue of 65,536 keys is one chunk, where CPU_CHUNK
would make 32. The memory is small beside the activations of such a batch. Not yet run on a GPU."""
GPU_CHUNK = 65_536
"""Most negatives per chunk on a GPU: with few queries the float32 copy of a chunk of bfloat16 keys is the larger part
(128 MiB for 512 dimensions)."""


def _compute(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    chunk: int | None,
    own: int | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [N], hit [N], and gradient of the loss with respect to the query [N, D], in float32 or float64."""
    # a batch of keys is short beside a queue, and wider than Triton's kernel may be
    if own is None and implementation(negatives_KD.device, negatives_KD.dtype, negatives_KD.shape[1]) == "triton":
        from fastmoco.kernels import infonce_triton

        return infonce_triton.forward(query_ND, key_ND, negatives_KD, temperature)
    return forward(query_ND, key_ND, negatives_KD, temperature, chunk, own)


def _keep_slope(ctx, inputs, output) -> None:
    _, hit_N, slope_ND = output
    ctx.mark_non_differentiable(hit_N, slope_ND)
    ctx.save_for_backward(slope_ND)
    ctx.query_dtype = inputs[0].dtype


def _backward(ctx, grad_loss_N, _grad_hit, _grad_slope):
    (slope_ND,) = ctx.saved_tensors
    return (slope_ND * grad_loss_N[:, None]).to(ctx.query_dtype), None, None, None, None, None


class _InfoNCE(torch.autograd.Function):
    """The operator in eager mode, where calling one takes the host longer: 0.1 ms more than 0.2 ms on small tensors."""

    @staticmethod
    def forward(ctx, *inputs):  # with a `setup_context` it would take as long as the operator
        output = _compute(*inputs)
        _keep_slope(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)  # pyright: ignore[reportAssignmentType]


# torch.compile traces into a Function and cannot look into Triton's launches and the choice between implementations
_operator = torch.library.custom_op("fastmoco::infonce", _compute, mutates_args=())
_operator.register_autograd(_backward, setup_context=_keep_slope)


@_operator.register_fake
def _(query_ND, key_ND, negatives_KD, temperature, chunk, own):
    slope_ND = torch.empty_like(query_ND, dtype=_computed_in(query_ND), memory_format=torch.contiguous_format)
    return slope_ND.new_empty(len(query_ND)), query_ND.new_empty(len(query_ND), dtype=torch.bool), slope_ND


def _computed_in(query_ND: torch.Tensor) -> torch.dtype:
    return torch.promote_types(query_ND.dtype, torch.float32)


def chunk_for(queries: int, device: torch.device) -> int:
    """Negatives per chunk for a number of queries on a device."""
    if device.type == "cpu":
        return CPU_CHUNK
    # whole multiples of 1024, which tiles of a matrix product divide
    return min(GPU_CHUNK, max(CPU_CHUNK, GPU_LOGITS // queries // 1024 * 1024))


def forward(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    chunk: int | None = None,
    own: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, hit and gradient in torch, by chunks of the dictionary; in float64 for float64 queries, else in float32."""
    query_ND, key_ND = (rows.to(_computed_in(query_ND)) for rows in (query_ND, key_ND))
    scaled_ND = query_ND / temperature
    positive_N = (scaled_ND * key_ND).sum(1)
    # not −inf, from which a chunk with nothing but the query's own key would be subtracted
    hardest_N = torch.full_like(positive_N, torch.finfo(positive_N.dtype).min)
    total_N = torch.zeros_like(positive_N)
    weighted_ND = torch.zeros_like(query_ND)
    # log-sum-exp online: whenever a larger logit appears, what was summed so far is rescaled to it (arXiv 1805.02867)
    chunk = chunk or chunk_for(len(query_ND), query_ND.device)
    for place, part_CD in enumerate(negatives_KD.split(chunk)):
        part_CD = part_CD.to(query_ND.dtype)
        logits_NC = scaled_ND @ part_CD.T
        if own is not None:  # query i's own key is row `own` + i of the dictionary
            logits_NC.diagonal(own - place * chunk).fill_(-torch.inf)
        largest_N = torch.maximum(hardest_N, logits_NC.amax(1))
        weights_NC = logits_NC.sub_(largest_N[:, None]).exp_()
        rescale_N = (hardest_N - largest_N).exp_()
        total_N.mul_(rescale_N).add_(weights_NC.sum(1))
        weighted_ND.mul_(rescale_N[:, None]).addmm_(weights_NC, part_CD)
        hardest_N = largest_N
    # the positive enters last: log(1 + e^x) is exact where the loss is near 0, log-sum-exp − positive would cancel
    excess_N = hardest_N + total_N.log() - positive_N
    loss_N = torch.logaddexp(excess_N, torch.zeros_like(excess_N))
    slope_ND = weighted_ND.div_(total_N[:, None]).sub_(key_ND).mul_(excess_N.sigmoid()[:, None] / temperature)
    return loss_N, positive_N >= hardest_N, slope_ND


def infonce(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    chunk: int | None = None,
    own: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE (arXiv 1911.05722, equation 1), with a first-order gradient for the query only.

    Args:
        query_ND: Queries [N, D], unit length, any float dtype.
        key_ND: Their positive keys [N, D], same dtype; no gradient.
        negatives_KD: The dictionary [K, D], float32, bfloat16 or float64; no gradient.
        temperature: τ.
        chunk: Negatives per chunk of the torch implementation; default: by the number of queries and the device.
        own: Row of the first query's own key in the dictionary, and so on in order: no query has its own key among
            its negatives. None if the dictionary does not hold them.

    Returns:
        The loss of each query [N], float32 or float64, and whether its positive beats every negative, bool [N].

    Raises:
        ValueError: Shapes, dtypes or devices do not match, or the temperature is not above 0.
    """
    _check(query_ND, key_ND, negatives_KD, temperature, chunk, own)
    function = _operator if torch.compiler.is_compiling() else _InfoNCE.apply
    loss_N, hit_N, _ = function(query_ND, key_ND.detach(), negatives_KD.detach(), temperature, chunk, own)
    return loss_N, hit_N


def _check(
    query_ND: torch.Tensor,
    key_ND: torch.Tensor,
    negatives_KD: torch.Tensor,
    temperature: float,
    chunk: int | None,
    own: int | None,
) -> None:
    given = query_ND, key_ND, negatives_KD
    fit = query_ND.dim() == negatives_KD.dim() == 2 and query_ND.shape == key_ND.shape
    if not fit or query_ND.shape[1] != negatives_KD.shape[1] or 0 in query_ND.shape or len(negatives_KD) == 0:
        shapes = [tuple(t.shape) for t in given]
        raise ValueError(
            f"query, key and negatives have shapes {shapes}; expected [N, D], [N, D] and [K, D], none of them empty"
        )
    types = [t.dtype for t in given]
    if types[0] != types[1] or not query_ND.is_floating_point():
        raise ValueError(f"query and key are of {types[0]} and {types[1]}; give both of one float dtype")
    if types[2] not in (torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(f"the negatives are of {types[2]}; store them in float32, bfloat16 or float64")
    if len({t.device for t in given}) > 1:
        raise ValueError(f"query, key and negatives are on {[str(t.device) for t in given]}; move them to one device")
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is {temperature}; it must be above 0, as 0.07")
    if chunk is not None and chunk < 1:
        raise ValueError(f"the chunk is {chunk}; it must be at least 1")
    most = len(negatives_KD) - len(query_ND)
    if own is not None and (not 0 <= own <= most or len(negatives_KD) < 2):
        rows = f"of {len(negatives_KD)} keys, those of {len(query_ND)} queries begin at one of the rows 0 … {most}"
        raise ValueError(f"own is {own}; {rows}, and at least one other key is a negative")
