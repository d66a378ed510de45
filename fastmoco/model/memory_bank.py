"""The memory bank (arXiv 1805.01978; arXiv 1911.05722, section 3.2 and figure 2b): a feature for each sample.

M: samples of the set, K: negatives of a step, D: feature dimension, B: images of a rank, N: images of all ranks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from fastmoco.devices import to_device
from fastmoco.kernels import infonce
from fastmoco.model.dictionary import Batch, Dictionary

_STREAM = 0xBA7  # keeps these draws apart from the shuffles' of the same seed and step


class MemoryBank(Dictionary):
    """A feature of every sample, from when it was last seen. Every rank holds the whole bank.

    The positive of a query is the entry of its own sample, from an earlier epoch. The negatives are K entries of
    samples outside the batch, drawn at each step with replacement and shared by its queries. After the step, the entry
    v of each sample in the batch becomes the unit vector along m v + (1 − m) f, where f is the sample's new feature.
    """

    part = "memory_bank"
    by_sample = True

    bank_MD: torch.Tensor
    seen: torch.Tensor

    def __init__(self, samples: int, negatives: int, feature_dim: int, momentum: float, seed: int) -> None:
        """Initialise the entries with random unit vectors.

        Args:
            samples: Number of samples M.
            negatives: Number K of entries drawn at each step; may exceed M.
            feature_dim: Dimension D.
            momentum: m of the entries.
            seed: The draws depend only on it and on the step.
        """
        super().__init__()
        self.samples, self.count, self.momentum, self.seed = samples, negatives, momentum, seed
        self.register_buffer("bank_MD", F.normalize(torch.randn(samples, feature_dim), dim=1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def contrast(self, query_BD: torch.Tensor, keys_ND: torch.Tensor, batch: Batch, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Contrast queries with stored features; `keys_ND` is not used."""
        assert batch.ids_N is not None
        positive_BD = self.bank_MD[batch.ids_N[batch.own]].to(query_BD.dtype)
        negatives_KD = self.bank_MD[self.drawn(batch.ids_N, batch.step)]
        return infonce(query_BD, positive_BD, negatives_KD, temperature)

    def drawn(self, ids_N: torch.Tensor, step: int) -> torch.Tensor:
        """Ids of a step's negatives, int64 [K], none of which is in `ids_N`."""
        # a new generator for each step: a run that resumes at any step draws what it would have drawn
        generator = np.random.Generator(np.random.Philox([self.seed, step, _STREAM, 0]))
        # as if all ids of the batch differed. If some repeat, the last ids of the set are not drawn at this step
        places_K = torch.from_numpy(generator.integers(self.samples - len(ids_N), size=self.count))
        return nth_absent(to_device(places_K, ids_N.device), ids_N, self.samples)

    @torch.no_grad()
    def update(self, keys_ND: torch.Tensor, batch: Batch) -> None:
        """Move the entries of the batch's samples towards their new features [N, D].

        If a sample is in the batch more than once, all its rows store the first of its features. Otherwise the order of
        a device's writes would decide, and ranks could differ.
        """
        assert batch.ids_N is not None
        ids_N, order_N = batch.ids_N.sort(stable=True)
        first_N = order_N[torch.searchsorted(ids_N, ids_N)]
        new_ND = keys_ND[first_N].to(self.bank_MD.dtype)
        moved_ND = self.momentum * self.bank_MD[ids_N] + (1 - self.momentum) * new_ND
        self.bank_MD[ids_N] = F.normalize(moved_ND, dim=1)
        self.seen.add_(len(ids_N))

    def fill(self) -> torch.Tensor:
        """Images seen / samples, at most 1: close to the share of the bank that holds features."""
        return (self.seen / self.samples).clamp(max=1.0)


def nth_absent(places_K: torch.Tensor, ids_N: torch.Tensor, count: int) -> torch.Tensor:
    """Entries `places_K` of the ascending list of the ids 0 … count − 1 without those in `ids_N`.

    Computed from the sorted `ids_N` by binary search, without building the list, which is as long as the data set.

    Args:
        places_K: int64 [K], below count − N.
        ids_N: int64 [N]; may repeat.
        count: Number of ids.
    """
    # the i-th smallest id has id − i absent ids before it, an ascending list. So entry p of the absent ids is p plus
    # the number of ids with at most p absent ones before them
    ids_N = ids_N.sort().values
    # a repeated id would be subtracted twice; it is replaced by one beyond the last, which comes before no entry
    repeated_N = F.pad(ids_N[1:] == ids_N[:-1], (1, 0))
    beyond_N = torch.arange(count, count + len(ids_N), device=ids_N.device)
    ids_N = torch.where(repeated_N, beyond_N, ids_N).sort().values
    absent_before_N = ids_N - torch.arange(len(ids_N), device=ids_N.device)
    return places_K + torch.searchsorted(absent_before_N, places_K, right=True)
