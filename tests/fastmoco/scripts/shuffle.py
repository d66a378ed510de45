"""Run under torchrun: checks of shuffled BatchNorm that need several ranks. Prints ok on success."""

import torch
import torch.distributed as dist

from fastmoco.model.shuffle_bn import gather_unshuffled, permutation, start_exchange
from fastmoco.ranks.exchange import all_gather_rows, all_gather_uneven

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
batch = 6
for dtype in (torch.float32, torch.bfloat16, torch.uint8):
    everything = torch.randint(0, 200, (size * batch, 3, 4, 5), generator=torch.Generator().manual_seed(1)).to(dtype)
    mine = everything[rank * batch : (rank + 1) * batch].contiguous(memory_format=torch.channels_last)
    free = [torch.randperm(size * batch, generator=torch.Generator().manual_seed(step)) for step in range(5)]
    for step, order in enumerate([permutation(7, n, size * batch, size * s) for s in (1, 2) for n in range(8)] + free):
        arriving = start_exchange(mine, order)
        changed = mine.clone().mul_(2)  # work between start and end, as the query's forward pass
        received = arriving()
        assert torch.equal(changed, mine * 2)
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
