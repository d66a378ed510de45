"""MoCo v3: the paper's pseudo-code, heads, optimisers, checkpoints, refusals, and a run from the command line."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastmoco.checkpoints import checkpoint, saving
from fastmoco.checkpoints.checkpoint import CheckpointError
from fastmoco.config import ConfigError
from fastmoco.kernels import infonce, reference
from fastmoco.model import encoders, timm_encoders
from fastmoco.model.encoders import Encoder
from fastmoco.model.heads import prediction_head, projection_head
from fastmoco.model.moco import MoCo
from fastmoco.recipes import RECIPES, recipe
from fastmoco.report.reading import read_run
from fastmoco.train import parse
from fastmoco.trainer.optimiser import LARS, AdamW, new_optimiser
from fastmoco.trainer.resume import check_compatible
from fastmoco.trainer.schedule import in_words, lr_at, momentum_key_at, peak_lr
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.runs import metrics, narrow_resnet10

SCRIPT = Path(__file__).parent / "scripts" / "v3.py"
SIZES = {"arch": "resnet10", "batch_size": 4, "image_size": 32, "head_width": 16, "feature_dim": 8}
SMALL = replace(recipe("moco-v3-r50"), **SIZES, precision="fp32", lr=0.1, epochs=None, steps=20)
ADAMW = {"optimiser": "adamw", "weight_decay_on": "all", "lr": 1e-3}


@pytest.fixture(autouse=True)
def narrow(monkeypatch, one_thread):
    monkeypatch.setitem(encoders._BUILDERS, "resnet10", narrow_resnet10(1 / 8))


def batch(step):
    views = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
    return TwoViews(*(view.contiguous(memory_format=torch.channels_last) for view in views), torch.arange(4))


def test_twenty_steps_equal_the_papers_pseudo_code(command):
    """With LARS and AdamW, as one batch and in micro-batches, whose BatchNorm groups the reference has, too."""
    assert command(sys.executable, SCRIPT, "lars", "vit/2").stdout.strip() == "ok"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "cases"),
    [(2, ["lars/2", "vit"]), pytest.param(3, ["lars", "lars/2", "adamw/2", "vit"], marks=pytest.mark.long)],
)
def test_twenty_steps_on_several_ranks_equal_the_papers_pseudo_code(torchrun, ranks, cases):
    assert torchrun(ranks, SCRIPT, *cases).stdout.strip() == "ok"


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("own", [0, 2, 4])
def test_the_loss_leaves_the_querys_own_key_out_of_its_negatives(own, chunk):
    generator = torch.Generator().manual_seed(own)
    query, keys = (torch.randn(rows, 5, dtype=torch.float64, generator=generator) for rows in (3, 7))
    ours, theirs = query.clone().requires_grad_(), query.clone().requires_grad_()
    loss, hit = infonce(ours, keys[own : own + 3], keys, 0.3, chunk, own)
    expected = nn.functional.cross_entropy(theirs @ keys.T / 0.3, torch.arange(own, own + 3), reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), ours), torch.autograd.grad(expected.sum(), theirs))
    for row in range(3):
        rest = torch.cat([keys[: own + row], keys[own + row + 1 :]])
        one = query[row : row + 1], keys[own + row : own + row + 1], rest
        assert hit[row] == reference.infonce(*one, 0.3)[1][0]


@pytest.mark.parametrize(("own", "keys"), [(5, 7), (-1, 7), (0, 1)])
def test_rows_that_are_no_keys_of_the_queries_are_refused(own, keys):
    query = torch.eye(3)[: min(3, keys)]
    with pytest.raises(ValueError, match=f"own is {own}; of {keys} keys"):
        infonce(query, query, torch.ones(keys, 3), 0.1, None, own)


def kinds(head):
    return [(type(m), getattr(m, "affine", None)) for m in head]


def test_heads_are_those_of_the_papers_code():
    layer, norm, relu = (nn.Linear, None), (nn.BatchNorm1d, True), (nn.ReLU, None)
    bare = (nn.BatchNorm1d, False)
    assert kinds(projection_head("mlp-bn", 12, 4, 2, 6)) == [layer, norm, relu, layer, bare]
    assert kinds(projection_head("mlp-bn", 12, 4, 3, 6)) == [layer, norm, relu, layer, norm, relu, layer, bare]
    assert kinds(prediction_head("mlp", 4, 6)) == [layer, norm, relu, layer]
    assert kinds(prediction_head("mlp-bn", 4, 6)) == [layer, norm, relu, layer, bare]
    shapes = [tuple(p.shape) for p in projection_head("mlp-bn", 12, 4, 3, 6).parameters()]
    assert shapes == [(6, 12), (6,), (6,), (6, 6), (6,), (6,), (4, 6)]
    with pytest.raises(ValueError, match="unknown predictor 'x'; known: none, mlp, mlp-bn"):
        prediction_head("x", 4)


def test_the_key_encoder_has_no_predictor_and_starts_as_the_query_encoder():
    model = MoCo(SMALL)
    query, key = model.encoder.state_dict(), model.key_encoder.state_dict()
    assert set(query) - set(key) == {name for name in query if name.startswith("predictor.")} != set()
    assert all(torch.equal(query[name], value) for name, value in key.items())
    # a linear head's BatchNorm is the backbone's alone
    assert {type(m).__name__ for m in model.encoder.head if "Norm" in type(m).__name__} == {"SyncBatchNorm2d"}


class Training:
    """Parameters of several dimensions with fixed gradients, some steps with an overflow."""

    def __init__(self, config):
        generator = torch.Generator().manual_seed(0)
        shapes = ((4, 3, 3, 3), (8, 4), (8,), ())
        self.parameters = [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
        self.parameters.append(nn.Parameter(torch.zeros(3, 2, dtype=torch.float64)))  # whose norm is 0
        self.optimiser = new_optimiser(self.parameters, config, fused=False)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def run(self, steps, overflows=()):
        for step in steps:
            for group in self.optimiser.param_groups:
                group["lr"] = 0.1 / (1 + step)
            loss = sum((p * g).sum() for p, g in zip(self.parameters, gradients(step), strict=True))
            self.optimiser.zero_grad()
            self.scaler.scale(loss * (math.inf if step in overflows else 1)).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
        return self


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    shapes = ((4, 3, 3, 3), (8, 4), (8,), (), (3, 2))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def written_out(name, config, parameters, steps):
    slots = [[torch.zeros_like(p), torch.zeros_like(p)] for p in parameters]
    for count, step in enumerate(steps, start=1):
        lr = 0.1 / (1 + step)
        for p, g, (one, two) in zip(parameters, gradients(step), slots, strict=True):
            decay = config.weight_decay if p.dim() > 1 or config.weight_decay_on == "all" else 0.0
            if name == "lars":
                u = g + decay * p
                if p.dim() > 1 and p.norm() > 0:
                    u = u * 0.001 * p.norm() / u.norm()
                one.copy_(config.momentum * one + u)
                p.sub_(lr * one)
            else:
                one.copy_(0.9 * one + 0.1 * g)
                two.copy_(0.999 * two + 0.001 * g * g)
                p.sub_(lr * decay * p)
                p.sub_(lr * (one / (1 - 0.9**count)) / ((two / (1 - 0.999**count)).sqrt() + 1e-8))


@pytest.mark.parametrize("overflows", [(), (0, 3)])
@pytest.mark.parametrize("weight_decay_on", ["all", "matrices"])
@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_steps_of_an_optimiser_equal_a_written_out_one(name, weight_decay_on, overflows):
    """Steps whose gradients overflow are skipped; biases and norms have no rate, and if asked no decay."""
    config = replace(SMALL, optimiser=name, weight_decay=0.3, weight_decay_on=weight_decay_on)
    ours, expected = Training(config).run(range(6), overflows), [p.detach() for p in Training(config).parameters]
    written_out(name, config, expected, [step for step in range(6) if step not in overflows])
    torch.testing.assert_close(list(ours.parameters), expected, rtol=1e-9, atol=1e-12)
    assert type(ours.optimiser) is {"lars": LARS, "adamw": AdamW}[name]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_biases_and_norms_are_a_group_without_decay(name):
    config = replace(SMALL, optimiser=name, weight_decay=0.3, weight_decay_on="matrices")
    encoder = Encoder("resnet10", "linear", 8)
    groups = new_optimiser(encoder.parameters(), config, fused=False).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    without = {names[parameter] for parameter in groups[1]["params"]}
    norms = {
        f"{n}.{of}" for n, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d) for of in ("weight", "bias")
    }
    assert without == norms | {"head.bias"}
    assert sum(len(group["params"]) for group in groups) == len(names)
    (one,) = new_optimiser(encoder.parameters(), replace(config, weight_decay_on="all"), fused=False).param_groups
    assert one["weight_decay"] == 0.3 and len(one["params"]) == len(names)


@pytest.mark.parametrize("changes", [{}, ADAMW, {**ADAMW, "precision": "fp16"}, {"accumulate": 2}])
def test_twenty_steps_equal_ten_a_checkpoint_and_ten(tmp_path, changes):
    config = replace(SMALL, **changes)
    whole, cut = (TrainStep(config, torch.device("cpu"), 20) for _ in range(2))
    losses = [whole(batch(step), step).loss.item() for step in range(20)]
    for step in range(10):
        cut(batch(step), step)
    saving.save(tmp_path, {"progress": {"step": 10}, **cut.state()}, keep=1)
    again = TrainStep(replace(config, weight_decay=0.5), torch.device("cpu"), 20)
    again.load_state(checkpoint.newest(tmp_path)[1])
    for group, own in zip(again.optimiser.param_groups, whole.optimiser.param_groups, strict=True):
        assert group["weight_decay"] == (0.5 if own["weight_decay"] else 0.0)  # the settings come from the run
        group["weight_decay"] = own["weight_decay"]
    assert [again(batch(step), step).loss.item() for step in range(10, 20)] == losses[10:]
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    assert set(whole.state()) == {"query_encoder", "key_encoder", "optimiser", "scaler"}


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_a_run_continues_in_another_precision(before, after):
    first, second = (TrainStep(replace(SMALL, precision=each), torch.device("cpu"), 4) for each in (before, after))
    first(batch(0), 0)
    second.load_state(first.state())
    assert second.scaler.get_scale() == (65536.0 if after == "fp16" else 1.0)  # a new one, or none
    assert second(batch(1), 1).loss.isfinite()


def test_another_optimiser_head_or_group_of_parameters_is_another_run():
    state = {"config": SMALL.to_dict(), "data": {"digest": "a", "samples": 4}}
    for change in (ADAMW, {"weight_decay_on": "all"}, {"predictor": "mlp-bn"}, {"head_layers": 3}):
        with pytest.raises(CheckpointError, match=f"--{next(iter(change)).replace('_', '-')} was"):
            check_compatible("a.pt", state, replace(SMALL, **change), "a")
    old = recipe("demo")
    state["config"] = old.to_dict()
    for name in ("optimiser", "weight_decay_on", "head_layers", "head_width", "predictor"):
        del state["config"][name]  # as in a checkpoint older than these settings
    assert check_compatible("old.pt", state, replace(old, accumulate=2), "a") == {"accumulate": (1, 2)}


@pytest.mark.parametrize(("epochs", "warmup"), [(100, 0.1), (300, 0.0333), (1000, 0.01)])
def test_the_rate_rises_for_ten_epochs_and_ends_at_zero_and_the_momentum_at_one(epochs, warmup):
    config = replace(recipe("moco-v3-r50"), epochs=epochs, warmup=warmup)
    total = epochs * 30
    assert peak_lr(config) == pytest.approx(0.6 * 4096 / 256)
    rates = [lr_at(config, step, total) for step in range(total)]
    top = max(range(total), key=rates.__getitem__)
    assert (top + 1) / 30 == pytest.approx(10, abs=0.05) and rates[top] == pytest.approx(9.6)
    assert rates[0] == pytest.approx(9.6 / (top + 1)) and 0 < rates[-1] < 1e-4
    middle = (top + 1 + total) / 2
    assert lr_at(config, round(middle), total) == pytest.approx(4.8, rel=1e-3)
    assert [momentum_key_at(config, step, total) for step in (0, total)] == [0.99, 1.0]
    assert in_words(config, 30, total).endswith(f"along half a cosine to 0 at step {total}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--queue-size 4096", "--queue-size 4096 has no effect: --mechanism batch keeps no keys; leave it out"),
        ("--queue-dtype bfloat16", "--queue-dtype bfloat16 applies to --mechanism queue only, which batch is not"),
        ("--bank-momentum 0.9", "--bank-momentum 0.9 has no effect"),
        ("--mechanism memory-bank", "--predictor mlp predicts the keys of a momentum encoder, which"),
        ("--mechanism end-to-end", "--mechanism end-to-end does not have; use --predictor none"),
        ("--cuda-graphs --batch-norm plain --no-symmetric", "--cuda-graphs does not work with --mechanism batch"),
        ("--optimiser adamw --momentum 0.8", "--momentum 0.8 has no effect: --optimiser adamw"),
        ("--head mlp --head-layers 3", "applies to --head mlp-bn only, which mlp is not; give --head-layers 2, the"),
        ("--recipe moco-v3-vit-s --head mlp", "--head-layers 3 applies to --head mlp-bn only, which mlp is not; give"),
        ("--mechanism memory-bank --predictor none", "--mechanism memory-bank encodes no keys; give --no-symmetric"),
        ("--arch timm:test_vit", "and --arch timm:test_vit is initialised by timm; give --no-zero-init-residual"),
        ("--head mlp --predictor none --head-width 8", "--head-width 8 applies to --head mlp-bn and --predictor only"),
        ("--head-layers 0", "--head-layers is 0; it must be at least 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, said):
    with pytest.raises(ConfigError) as error:
        parse(["--recipe", "moco-v3-r50", *arguments.split()])
    assert said in str(error.value)


def test_what_a_recipe_has_set_is_not_to_be_left_out():
    """The remedy is a flag, with which the settings are taken."""
    given = ["--recipe", "moco-v3-r50", "--arch", "timm:test_vit", "--no-zero-init-residual"]
    given += ["--head", "mlp", "--predictor", "none", "--batch-size", "8"]
    with pytest.raises(ConfigError, match=r"--batch-norm sync: .* has no BatchNorm; give --batch-norm shuffle"):
        MoCo(parse(given))
    MoCo(parse([*given, "--batch-norm", "shuffle"]))


def test_the_recipes_are_the_settings_of_the_papers_code():
    small, base, resnet = (RECIPES[f"moco-v3-{name}"]() for name in ("vit-s", "vit-b", "r50"))
    assert small == replace(base, recipe=small.recipe, arch=small.arch)
    assert (small.arch, base.arch, resnet.arch) == ("moco_v3_vit_small", "moco_v3_vit_base", "resnet50")
    assert (small.view_pair.query.area, resnet.view_pair.query.area) == ((0.08, 1.0), (0.2, 1.0))
    assert (small.head_layers, small.predictor, resnet.head_layers, resnet.predictor) == (3, "mlp-bn", 2, "mlp")
    assert {config.batch_norm for config in (small, resnet)} == {"sync"}
    assert peak_lr(replace(small, batch_size=1024)) == pytest.approx(6e-4)
    assert lr_at(small, 40 * 312 - 1, 300 * 312) == pytest.approx(peak_lr(small)) == pytest.approx(2.4e-3)
    assert (small.weight_decay, small.weight_decay_on, small.temperature, small.momentum_key) == (0.1, "all", 0.2, 0.99)


@pytest.fixture
def small_vit(monkeypatch):
    """In place of the ViT-S one with as many kinds of parts."""
    monkeypatch.setitem(timm_encoders._V3, "moco_v3_vit_small", ("test_vit", {}))
    caches = (timm_encoders.traits, encoders._shapes)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_a_vit_is_trained_and_exported_by_its_recipe(shard_sets, tmp_path, in_process, small_vit):
    sizes = ["--image-size", "32", "--batch-size", "16", "--head-width", "32", "--steps", "2", "--accumulate", "2"]
    run = ["--shards", shard_sets / "train", "--out", tmp_path / "run"]
    log = in_process("-m", "fastmoco.__main__", "train", "--recipe", "moco-v3-vit-s", *sizes, *run).stderr
    assert f"chance is a loss of 0.8 ln(K+1) = {0.8 * math.log(16):.3f}" in log
    in_process(
        "-m",
        "fastmoco.__main__",
        "export",
        "--checkpoint",
        tmp_path / "run",
        "--format",
        "timm",
        "--out",
        tmp_path / "e.pth",
    )
    state = checkpoint.load(checkpoint.newest_of(tmp_path / "run"))["query_encoder"]
    names = {name.removeprefix("backbone.") for name in state if name.startswith("backbone.")}
    assert "pos_embed" in names and set(torch.load(tmp_path / "e.pth", weights_only=True)) == names


def test_the_same_in_python():
    with pytest.raises(ConfigError, match="--queue-size 100 has no effect"):
        recipe("moco-v3-r50", queue_size=100)
    assert recipe("moco-v2", mechanism="batch", batch_size=64).negatives == 63


def test_a_run_from_the_command_line_and_what_reads_its_encoder(shard_sets, tmp_path, in_process):
    """Training, its report's chance, the probes, a classifier, features, an export, and a start from its weights."""
    run, sets = tmp_path / "run", ["--train", shard_sets / "train", "--val", shard_sets / "val"]
    small = ["--recipe", "moco-v3-r50", "--arch", "resnet10", "--image-size", "32", "--batch-size", "16"]
    train = [
        "-m",
        "fastmoco.__main__",
        "train",
        *small,
        "--head-width",
        "32",
        "--shards",
        shard_sets / "train",
        "--log-every",
        "1",
    ]
    log = in_process(*train, "--steps", "2", "--out", run).stderr
    assert "negatives are the keys of the batch's other 15 images" in log
    chance = 4 * math.log(16)  # 2τ and two losses, at a temperature of 1
    assert f"chance is a loss of 4 ln(K+1) = {chance:.3f}" in log
    assert [record["loss"] for record in metrics(run)] == pytest.approx([chance, chance], abs=1)
    assert read_run(run).chance == pytest.approx(chance)
    knn = in_process("-m", "fastmoco.__main__", "knn", "--checkpoint", run, *sets, "--json", tmp_path / "knn.json")
    assert 0 <= json.loads((tmp_path / "knn.json").read_text())["knn_top1"] <= 100, knn.stderr
    in_process(
        "-m", "fastmoco.__main__", "export", "--checkpoint", run, "--format", "torchvision", "--out", tmp_path / "e.pth"
    )
    exported = torch.load(tmp_path / "e.pth", weights_only=True)
    state = checkpoint.load(checkpoint.newest_of(run))["query_encoder"]
    assert set(exported) == {n.removeprefix("backbone.") for n in state if n.startswith("backbone.")}
    refused = in_process(
        "-m",
        "fastmoco.__main__",
        "export",
        "--checkpoint",
        run,
        "--format",
        "moco",
        "--out",
        tmp_path / "m.pth",
        check=False,
    )
    assert "has no queue of keys" in refused.stderr
    short = ["--epochs", "1", "--batch-size", "16"]
    in_process("-m", "fastmoco.__main__", "finetune", "--checkpoint", run, *sets, *short, "--out", tmp_path / "tuned")
    in_process(
        "-m",
        "fastmoco.__main__",
        "embed",
        "--checkpoint",
        run,
        "--images",
        shard_sets / "val",
        "--out",
        tmp_path / "vectors",
    )
    again = in_process(*train, "--steps", "1", "--init", run, "--out", tmp_path / "again").stderr
    assert "query encoder and key encoder, with the head" in again
