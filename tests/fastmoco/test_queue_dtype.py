"""Training with keys in bfloat16: what the queue stores, resume, ranks, and the files that are made from it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastmoco.checkpoints import checkpoint
from fastmoco.kernels import infonce, reference
from fastmoco.layouts.original import to_original
from fastmoco.model.dictionary import Queue
from fastmoco.model.moco import MoCo
from fastmoco.recipes import recipe
from tests.support.runs import metrics

SMALL = ["--recipe", "demo", "--image-size", "32", "--batch-size", "16", "--queue-size", "40", "--log-every", "1"]
# the rate of this schedule does not depend on the length of the run
BFLOAT16 = ["--queue-dtype", "bfloat16", "--schedule", "exponential"]


def flags(shard_sets, run, *more):
    return ["-m", "fastmoco.train", *SMALL, "--shards", shard_sets / "train", "--out", run, "--threads", "1", *more]


def newest(run):
    return checkpoint.load(checkpoint.found(run / "checkpoints")[0])


def test_the_setting_decides_the_stored_keys_alone():
    config = replace(recipe("demo"), queue_size=20)
    queues = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = MoCo(replace(config, queue_dtype=dtype))
        queues.append(model.dictionary.queue_KD)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert [queue.dtype for queue in queues] == [torch.float32, torch.bfloat16]
    assert torch.equal(queues[0].bfloat16(), queues[1])


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_the_loss_of_rounded_keys_is_near_that_of_exact_ones(temperature):
    """A key of 128 dimensions, each rounded by up to 2⁻⁹ of itself: no logit is off by more than 2⁻⁹ / τ."""
    generator = torch.Generator().manual_seed(0)
    query, key, stored = (F.normalize(torch.randn(n, 128, generator=generator), dim=1) for n in (64, 64, 4096))
    exact = query.double().requires_grad_()
    expected = reference.infonce(exact, key.double(), stored.double(), temperature)[0]
    expected.mean().backward()
    queue, ours = Queue(4096, 128, dtype=torch.bfloat16), query.clone().requires_grad_()
    queue.enqueue(stored)
    loss = infonce(ours, key, queue.negatives(), temperature)[0]
    loss.mean().backward()
    assert 0 < (loss.double() - expected).abs().max() < 2**-9 / temperature
    assert ours.grad is not None and exact.grad is not None
    assert (ours.grad - exact.grad).norm() < 2**-9 / temperature * exact.grad.norm()


def test_a_resumed_run_equals_an_uninterrupted_one_and_another_dtype_is_refused(shard_sets, tmp_path, command):
    once = {"OMP_NUM_THREADS": "1"}
    command(sys.executable, *flags(shard_sets, tmp_path / "whole", "--steps", "8", *BFLOAT16), env=once)
    for steps in ("5", "8"):
        command(sys.executable, *flags(shard_sets, tmp_path / "parts", "--steps", steps, *BFLOAT16), env=once)
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert whole["config"]["queue_dtype"] == "bfloat16" and whole["queue"]["queue_KD"].dtype == torch.bfloat16
    for part in ("queue", "query_encoder", "key_encoder"):
        assert all(torch.equal(whole[part][name], parts[part][name]) for name in whole[part]), part
    losses = [[record["loss"] for record in metrics(tmp_path / run) if "loss" in record] for run in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 8

    refused = command(sys.executable, *flags(shard_sets, tmp_path / "parts", "--steps", "9"), check=False)
    assert refused.returncode == 2
    assert "is of another run: --queue-dtype was 'bfloat16', now 'float32'. Use the same settings" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1

    probed = command(
        *(
            sys.executable,
            "-m",
            "fastmoco.knn",
            "--checkpoint",
            checkpoint.found(tmp_path / "whole" / "checkpoints")[0],
        ),
        *("--train", shard_sets / "train", "--val", shard_sets / "val", "--threads", "1"),
    )
    assert "top-1" in probed.stdout
    exported = to_original(whole)["state_dict"]["module.queue"]
    assert exported.dtype == torch.float32 and torch.equal(exported.T, whole["queue"]["queue_KD"].float())


@pytest.mark.distributed
def test_ranks_hold_one_queue(shard_sets, tmp_path, torchrun):
    """The run compares everything that ranks share, the keys' bits as well, every second step."""
    run = tmp_path / "run"
    torchrun(2, *flags(shard_sets, run, "--steps", "6", "--check-every", "2", *BFLOAT16))
    queue = newest(run)["queue"]
    assert queue["queue_KD"].dtype == torch.bfloat16 and queue["pointer"].item() == 6 * 16 % 40
