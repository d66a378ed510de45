"""Run alone or under torchrun: twenty float64 steps of MoCo v3 equal the paper's pseudo-code, written out here.

Arguments: recipes, each with /N behind it for N micro-batches a step. The reference is one process in plain torch with
every logit in memory. Prints ok on success.
"""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from fastmoco.model import timm_encoders
from fastmoco.model.moco import MoCo
from fastmoco.recipes import recipe
from fastmoco.trainer.agreement import check_agreement
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.written_out import compare_cases

# every BatchNorm group needs more images than these have channels to be far from a switch of a ReLU
STEPS, BATCH, SIZE, TOLERANCE = 20, 12, 32, 1e-7
SMALL = {
    "arch": "resnet10", "batch_size": BATCH, "image_size": SIZE, "head_width": 24, "feature_dim": 16,
    "precision": "fp32", "epochs": None, "steps": STEPS, "warmup": 0.1,
}  # fmt: skip
CASES = {
    "lars": replace(recipe("moco-v3-r50"), **SMALL, lr=0.5, weight_decay=0.01),
    # the heads and the optimiser of the ViTs with a ResNet, and a small ViT
    "adamw": replace(recipe("moco-v3-vit-s", **SMALL), lr=3e-4),
    "vit": recipe("moco-v3-vit-s", **SMALL | {"arch": "moco_v3_vit_small"}, lr=3e-4),
}  # fmt: skip


class Reference:
    """Algorithm 1 of arXiv 2104.02057, with LARS or AdamW spelt out."""

    def __init__(self, start, config, groups):
        self.config, self.groups = config, groups
        predictor = mlp(start.encoder.predictor, [16, 24, 16], config.predictor == "mlp-bn")
        dims = [start.encoder.backbone.out_dim] + [24] * (config.head_layers - 1) + [16]
        backbone = copy.deepcopy(start.encoder.backbone)
        self.f_q = nn.ModuleList([backbone, mlp(start.encoder.head, dims, True), predictor])
        self.f_k = copy.deepcopy(self.f_q[:2])
        self.trained = {name: theta for name, theta in self.f_q.named_parameters() if theta.requires_grad}
        self.slots = [{name: torch.zeros_like(theta) for name, theta in self.trained.items()} for _ in range(2)]

    def forward(self, modules, images):
        """BatchNorm by the statistics of each group of images, which are one for all ranks."""
        features = torch.zeros(BATCH, 16)
        for group in self.groups:
            x = images[group]
            for module in modules:
                x = module(x)
            features = features.index_copy(0, group, x)
        return features

    def ctr(self, q, k):
        tau = self.config.temperature
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        return 2 * tau * F.cross_entropy(q @ k.T / tau, torch.arange(len(q)))

    def step(self, x1, x2, step):
        q1, q2 = self.forward(self.f_q, x1), self.forward(self.f_q, x2)
        with torch.no_grad():
            k1, k2 = self.forward(self.f_k, x1), self.forward(self.f_k, x2)
        loss = self.ctr(q1, k2) + self.ctr(q2, k1)
        gradients = torch.autograd.grad(loss, list(self.trained.values()))
        with torch.no_grad():
            for name, gradient in zip(self.trained, gradients, strict=True):
                getattr(self, self.config.optimiser)(name, gradient, step)
            m = momentum(self.config, step + 1)
            for theta_k, theta_q in zip(self.f_k.parameters(), self.f_q[:2].parameters(), strict=True):
                theta_k.copy_(m * theta_k + (1 - m) * theta_q)
        return loss.item()

    def lars(self, name, gradient, step):
        theta, velocity = self.trained[name], self.slots[0][name]
        if theta.dim() > 1:
            gradient = gradient + self.config.weight_decay * theta
            if theta.norm() > 0 and gradient.norm() > 0:
                gradient = gradient * (0.001 * theta.norm() / gradient.norm())
        velocity.mul_(0.9).add_(gradient)
        theta.sub_(rate(self.config, step) * velocity)

    def adamw(self, name, gradient, step):
        theta, lr = self.trained[name], rate(self.config, step)
        first, second = self.slots[0][name], self.slots[1][name]
        first.mul_(0.9).add_(0.1 * gradient)
        second.mul_(0.999).add_(0.001 * gradient**2)
        theta.mul_(1 - lr * self.config.weight_decay)
        corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        theta.sub_(lr * corrected[0] / (corrected[1].sqrt() + 1e-8))


def mlp(ours, dims, last):
    """The paper's MLP with the weights of ours, whose modules come in the same order."""
    layers = []
    for number, (before, after) in enumerate(pairwise(dims)):
        layers.append(nn.Linear(before, after, bias=False))
        if number < len(dims) - 2:
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
        elif last:
            layers.append(nn.BatchNorm1d(after, affine=False))
    net = nn.Sequential(*layers)
    net.load_state_dict(ours.state_dict())
    return net


def rate(config, step):
    """Two steps of warm-up, then half a cosine to 0."""
    if step < 2:
        return config.lr * (step + 1) / 2
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - 2) / 18))


def momentum(config, step):
    return 1 - 0.5 * (1 + math.cos(math.pi * step / STEPS)) * (1 - config.momentum_key)


def compare(case, rank, ranks):
    name, _, parts = case.partition("/")
    config, parts = replace(CASES[name], accumulate=int(parts or 1)), int(parts or 1)
    torch.manual_seed(config.seed)
    start = MoCo(replace(config, batch_norm="plain")).train()
    # with synchronised BatchNorm a group is the micro-batches of all ranks that come at the same time
    groups = [part.flatten() for part in torch.arange(BATCH).view(ranks, parts, -1).unbind(1)]
    reference = Reference(start, config, groups)
    ours = TrainStep(config, torch.device("cpu"), STEPS)
    own = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    for step in range(STEPS):
        views = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step))
        nhwc = (x[own].contiguous(memory_format=torch.channels_last) for x in views)
        loss = ours(TwoViews(*nhwc, torch.arange(BATCH)[own]), step).loss.detach()
        if ranks > 1:
            dist.all_reduce(loss)
        if rank == 0:
            near(f"the loss of step {step} of {case}", loss / ranks, torch.tensor(reference.step(*views, step)))
    # ours is updated before it makes keys, the pseudo-code's after the step
    ours.model.update_key_encoder(momentum(config, STEPS))
    check_agreement(ours.model.shared(), STEPS)
    if rank == 0:
        pairs = [(ours.model.encoder, reference.f_q), (ours.model.key_encoder, reference.f_k)]
        for encoder, wanted in pairs:
            for (what, tensor), theirs in zip(encoder.named_parameters(), wanted.parameters(), strict=True):
                near(f"{what} of {case}", tensor, theirs)
        weights = zip(ours.model.encoder.parameters(), start.encoder.parameters(), strict=True)
        moved = max((now - before).abs().max().item() for now, before in weights)
        assert moved > 1e4 * TOLERANCE, f"the weights moved by {moved} only: this test shows nothing"


def near(what, ours, theirs):
    worst = (ours - theirs).abs().max().item()
    assert worst <= TOLERANCE, f"{what} differs by {worst}"


torch.set_default_dtype(torch.float64)
timm_encoders._V3["moco_v3_vit_small"] = "test_vit", {}
compare_cases(compare)
