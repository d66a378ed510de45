"""Run alone or under torchrun: twenty float32 steps of each mechanism equal the papers' pseudo-code, written out here.

Arguments: mechanisms, each with /N behind it for N micro-batches a step. The reference is one process with images in
NCHW, every logit in memory and SGD spelt out; it imitates the ranks' BatchNorm by cutting the batch into as many
groups. Prints ok on success.
"""

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from fastmoco.model.moco import MoCo
from fastmoco.model.shuffle_bn import permutation
from fastmoco.recipes import recipe
from fastmoco.trainer.agreement import check_agreement
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.written_out import compare_cases

STEPS, BATCH, SIZE, SAMPLES, KEYS = 20, 16, 64, 60, 36
# in float32 the two agree as long as no ReLU switches in one of them alone: hence a small rate, and enough values
# for each BatchNorm
LR, TOLERANCE = 1e-4, 1e-5


class Reference:
    """Algorithm 1 of arXiv 1911.05722 (`queue`) and the two mechanisms that it is compared with in section 3.2."""

    def __init__(self, start, config, groups):
        self.config, self.groups, self.start = config, groups, copy.deepcopy(start).requires_grad_(True)
        self.f_q, self.f_k = self.start.query_encoder, self.start.key_encoder
        trained = {"queue": [self.f_q], "end-to-end": [self.f_q, self.f_k], "memory-bank": [self.f_q]}
        self.trained = [theta for encoder in trained[config.mechanism] for theta in encoder.parameters()]
        self.velocity = [torch.zeros_like(theta) for theta in self.trained]
        self.pointer = 0

    def step(self, x_q, x_k, ids, step, lr):
        loss = getattr(self, self.config.mechanism.replace("-", "_"))(x_q, x_k, ids, step)
        gradients = torch.autograd.grad(loss, self.trained)
        with torch.no_grad():
            for theta, velocity, gradient in zip(self.trained, self.velocity, gradients, strict=True):
                velocity.mul_(self.config.momentum).add_(gradient + self.config.weight_decay * theta)
                theta.sub_(lr * velocity)
            if self.config.mechanism == "queue":
                m = self.config.momentum_key
                for theta_k, theta_q in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                    theta_k.copy_(m * theta_k + (1 - m) * theta_q)
        return loss.item()

    def forward(self, encoder, images):
        return F.normalize(torch.cat([encoder(part) for part in images.chunk(self.groups)]), dim=1)

    def shuffled(self, images, step):
        if self.groups == 1:
            return self.forward(self.f_k, images)
        order = permutation(self.config.seed, step, len(images), self.groups)
        features, places = self.forward(self.f_k, images[order]), order.tolist()
        return torch.stack([features[places.index(number)] for number in range(len(images))])

    def nce(self, q, k, negatives):
        l_pos = torch.bmm(q[:, None, :], k[:, :, None])[:, 0]
        l_neg = torch.mm(q, negatives)
        logits = torch.cat([l_pos, l_neg], dim=1)
        return F.cross_entropy(logits / self.config.temperature, torch.zeros(len(q), dtype=torch.long))

    def queue(self, x_q, x_k, ids, step):
        q = self.forward(self.f_q, x_q)
        with torch.no_grad():
            k = self.shuffled(x_k, step)
        stored = self.start.dictionary.queue_KD
        loss = self.nce(q, k, stored.T.clone())
        for key in k:
            stored[self.pointer] = key
            self.pointer = (self.pointer + 1) % len(stored)
        return loss

    def end_to_end(self, x_q, x_k, ids, step):
        q, k = self.forward(self.f_q, x_q), self.shuffled(x_k, step)
        return F.cross_entropy(torch.mm(q, k.T) / self.config.temperature, torch.arange(len(q)))

    def memory_bank(self, x_q, x_k, ids, step):
        q, bank = self.forward(self.f_q, x_q), self.start.dictionary.bank_MD
        others = [number for number in range(SAMPLES) if number not in ids]
        draws = np.random.Generator(np.random.Philox([self.config.seed, step, 0xBA7, 0]))
        drawn = [others[place] for place in draws.integers(len(others), size=self.config.queue_size)]
        loss = self.nce(q, bank[ids], bank[drawn].T)
        for number, feature in zip(ids, q.detach(), strict=True):
            entry = 0.5 * bank[number] + 0.5 * feature
            bank[number] = entry / entry.norm()
        return loss


def images(step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    return *torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator), ids


def compare(mechanism, rank, ranks):
    mechanism, _, parts = mechanism.partition("/")
    parts = int(parts or 1)
    shape = {"batch_size": BATCH, "image_size": SIZE, "queue_size": KEYS, "precision": "fp32", "lr": LR}
    config = replace(recipe("demo"), mechanism=mechanism, **shape)
    torch.manual_seed(config.seed)
    start = MoCo(config, SAMPLES).train()
    reference = Reference(start, config, ranks * parts)
    ours = TrainStep(replace(config, accumulate=parts), torch.device("cpu"), STEPS, SAMPLES)
    own = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    for step in range(STEPS):
        x_q, x_k, ids = images(step)
        nhwc = (x[own].contiguous(memory_format=torch.channels_last) for x in (x_q, x_k))
        loss = ours(TwoViews(*nhwc, ids[own]), step).loss.detach()
        if ranks > 1:
            dist.all_reduce(loss)
        if rank == 0:
            expected = reference.step(x_q, x_k, ids.tolist(), step, ours.lr(step))
            near(f"the loss of step {step} of {mechanism}", loss / ranks, torch.tensor(expected))
    if mechanism == "queue":  # our key encoder is updated before it makes keys, the pseudo-code's after the step
        ours.model.update_key_encoder(config.momentum_key)
    check_agreement(ours.model.shared(), STEPS)
    if rank == 0:
        compare_states(ours.model, reference, start)


def compare_states(model, reference, start):
    theirs, before, moved = reference.start.state_dict(), start.state_dict(), []
    for name, tensor in model.shared().items():
        if tensor.is_floating_point():
            name = name if "encoder" in name else "dictionary." + name.split(".")[1]
            near(name, tensor, theirs[name])
        if name.endswith("weight"):
            moved.append((tensor - before[name]).abs().max().item())
    assert max(moved) > 30 * TOLERANCE, f"the weights moved by {max(moved)} only: this test shows nothing"
    if "queue" in model.parts():
        assert model.dictionary.pointer.item() == reference.pointer == STEPS * BATCH % KEYS


def near(what, ours, theirs):
    worst = (ours - theirs).abs().max().item()
    assert worst <= TOLERANCE, f"{what} differs by {worst}"


compare_cases(compare)
