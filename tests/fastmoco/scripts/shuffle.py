"""Run under torchrun: checks of shuffled BatchNorm that need several ranks. Prints ok on success."""

import torch
import torch.distributed as dist

from fastmoco.distributed import all_gather_rows, all_gather_uneven
from fastmoco.model.shuffle_bn import exchange, gather_unshuffled, permutation

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
batch = 6
for dtype in (torch.float32, torch.bfloat16, torch.uint8):
    everything = torch.randint(0, 200, (size * batch, 3, 4, 5), generator=torch.Generator().manual_seed(1)).to(dtype)
    mine = everything[rank * batch : (rank + 1) * batch].contiguous(memory_format=torch.channels_last)
    for step in range(20):
        order = permutation(7, step, size * batch)
        received = exchange(mine, order)
        assert received.dtype is dtype and received.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(received, everything[order[rank * batch : (rank + 1) * batch]]), (dtype, step)
        features = received[:, :, 0, 0].float()
        assert torch.equal(gather_unshuffled(features, order), everything[:, :, 0, 0].float())
rows = torch.full((rank + 1, 2), float(rank))
assert all_gather_uneven(rows)[:, 0].tolist() == [float(r) for r in range(size) for _ in range(r + 1)]
assert all_gather_rows(torch.tensor([[rank]])).flatten().tolist() == list(range(size))
dist.barrier()
if rank == 0:
    print("ok")
dist.destroy_process_group()
