"""Run under torchrun: BatchNorm over the images of all ranks equals that of one batch, in float64. Prints ok."""

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.kernels import reference
from fastmoco.kernels.batchnorm import Running, batch_norm
from fastmoco.model.batchnorm import SyncBatchNorm2d

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def leaf(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + seed


class NoWait(TorchDispatchMode):
    """Refuses what would make the host wait for a GPU: a number read from it, or a shape that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        masks = name == "aten::index.Tensor" and any(i.dtype == torch.bool for i in args[1] if i is not None)
        assert not masks and name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"), name
        return func(*args, **(kwargs or {}))


def check_tokens(rank, ranks):
    """SyncBatchNorm2d over [B, C, L], with as many tokens as channels, against torch's BatchNorm1d."""
    together, slope = (leaf(2 * ranks, 5, 5, seed=seed) for seed in (6, 7))
    ours, torchs = SyncBatchNorm2d(5), torch.nn.BatchNorm1d(5)
    own, whole = together.chunk(ranks)[rank].requires_grad_(), together.clone().requires_grad_()
    out, expected = ours(own), torchs(whole)
    torch.testing.assert_close(out, expected.chunk(ranks)[rank])
    torch.testing.assert_close(ours.running_var, torchs.running_var)
    (found,) = torch.autograd.grad(out, own, slope.chunk(ranks)[rank])
    (wanted,) = torch.autograd.grad(expected, whole, slope)
    torch.testing.assert_close(found, wanted.chunk(ranks)[rank])


def main():
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    shape = (3 * ranks, 5, 2, 3)
    x, residual, slope = (leaf(*shape, seed=seed).chunk(ranks) for seed in range(3))
    weight, bias = leaf(5, seed=4), leaf(5, seed=5)
    for relu, add in ((False, False), (True, False), (True, True)):
        whole = [torch.cat(x), weight, bias, *([torch.cat(residual)] if add else [])]
        whole = [part.clone().requires_grad_() for part in whole]
        expected, mean, variance = reference.batch_norm(*whole, relu=relu)
        gradients = torch.autograd.grad(expected, whole, torch.cat(slope))
        own = [x[rank], weight, bias, *([residual[rank]] if add else [])]
        own = [part.clone().requires_grad_() for part in own]
        running = Running(torch.zeros(5), torch.zeros(5), torch.tensor(0))
        with NoWait():
            out = batch_norm(*own, relu=relu, over_ranks=True, momentum=1.0, running=running)
            ours = torch.autograd.grad(out, own, slope[rank])
        torch.testing.assert_close(out, expected.chunk(ranks)[rank])
        torch.testing.assert_close(running.mean, mean)
        torch.testing.assert_close(running.var, variance)
        for name, gradient, wanted in zip("xwbr", ours, gradients, strict=False):
            if name in "wb":  # a rank's own part: DistributedDataParallel averages them
                dist.all_reduce(gradient)
            torch.testing.assert_close(gradient, wanted if name in "wb" else wanted.chunk(ranks)[rank], msg=name)
    check_tokens(rank, ranks)
    dist.barrier()
    if rank == 0:
        print("ok")
    dist.destroy_process_group()


main()
