"""Run under torchrun: four steps of Mask R-CNN; ranks hold the same model, and BatchNorm covers all ranks' regions.

A second run that resumes after two steps must end with the same bits.

transfer.py COCO_FOLDER OUT
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fastmoco.checkpoints import checkpoint
from fastmoco.detection.evaluation import detect
from fastmoco.detection.loop import Transfer
from fastmoco.detection.settings import recipe
from fastmoco.model import encoders
from fastmoco.model.batchnorm import SyncBatchNorm2d
from fastmoco.ranks.world import world
from fastmoco.trainer.agreement import check_agreement
from tests.support.runs import narrow_resnet10

torch.set_num_threads(1)
encoders._BUILDERS["resnet10"] = narrow_resnet10(1 / 8)


def uneven(rank):
    """Three ranks with three, one and four regions give what one BatchNorm over all eight gives."""
    generator = torch.Generator().manual_seed(0)
    together = torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64)
    weights = torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64)
    plain, synchronised = nn.BatchNorm2d(4).double(), SyncBatchNorm2d(4).double()
    own = slice(*((0, 3), (3, 4), (4, 8))[rank])
    whole, part = together.clone().requires_grad_(), together[own].clone().requires_grad_()
    expected, found = plain(whole), synchronised(part)
    torch.testing.assert_close(found, expected[own], rtol=0, atol=1e-12)
    (expected * weights).sum().backward()
    (found * weights[own]).sum().backward()
    torch.testing.assert_close(part.grad, whole.grad[own], rtol=0, atol=1e-12)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(synchronised, name), getattr(plain, name), rtol=0, atol=1e-12)


def main():
    coco, out = map(Path, sys.argv[1:])
    settings = replace(
        recipe("coco-c4-1x"), train=(f"{coco}:train",), val=f"{coco}:val", out=out / "run", arch="resnet10",
        batch_size=6, iterations=4, checkpoint_every=2, warmup=2, milestones=(), min_sizes=(64, 96), test_size=64,
        max_size=128,
        anchor_sizes=(16, 24, 32, 48), rois_per_image=16, test_proposals=20, threads=1, log_every=1,
    )  # fmt: skip
    with world() as here:
        uneven(here.rank)
        transfer = Transfer(settings, here)
        before = {name: value.clone() for name, value in transfer.train_step.detector.state_dict().items()}
        transfer.run()
        after = transfer.train_step.detector.state_dict()
        check_agreement(after, transfer.step)
        assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
        found, _ = detect(transfer.train_step.detector, transfer.val, transfer.reader, here, 1, None)
        one, other = transfer.val.photos[:2]  # of which rank 1 cannot read its own
        unreadable = replace(transfer.val, photos=(one, replace(other, path=coco / "none.jpg")))
        left, broken = detect(transfer.train_step.detector, unreadable, transfer.reader, here, 1, None)
        assert [each.image_id for each in left] == [one.id] and list(broken) == [other.id], (left, broken)
        ids, scores = [one.image_id for one in found], [one.scores.tolist() for one in found]
        (out / f"rank-{here.rank}.json").write_text(json.dumps({"ids": ids, "scores": scores, "step": transfer.step}))
        dist.barrier()
        if here.is_main:  # as the first run was after two steps
            (out / "resumed" / "checkpoints").mkdir(parents=True)
            shutil.copy(checkpoint.found(out / "run" / "checkpoints")[1], out / "resumed" / "checkpoints")
        dist.barrier()
        resumed = Transfer(replace(settings, out=out / "resumed"), here)
        resumed.run()
        again = resumed.train_step.detector.state_dict()
        differing = [name for name in after if not torch.equal(after[name], again[name])]
        assert not differing, f"{len(differing)} of {len(after)} tensors differ after resuming"


main()
