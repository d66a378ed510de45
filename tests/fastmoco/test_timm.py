"""Encoders of timm: building, training, and what is refused."""

from __future__ import annotations

import copy
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastmoco.config import Config, ConfigError
from fastmoco.devices import drop_seed
from fastmoco.doctor.step_memory import step_memory
from fastmoco.model import timm_encoders
from fastmoco.model.batchnorm import SyncBatchNorm2d, replace_batchnorm, split_batchnorm
from fastmoco.model.encoders import Encoder, backbone
from fastmoco.model.fused_batchnorm import FusedBatchNorm2d, fuse_batchnorm
from fastmoco.model.moco import MoCo
from fastmoco.model.timm_encoders import check_size, traits
from fastmoco.recipes import moco_v2, recipe
from fastmoco.train import parse
from fastmoco.trainer.soundness import looked_at
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews
from tests.support.families import FAMILIES

timm = pytest.importorskip("timm")

CPU = torch.device("cpu")
SMALL = {"image_size": 32, "batch_size": 4, "queue_size": 16, "feature_dim": 8, "steps": 4, "lr": 0.05}
SMALL |= {"precision": "fp32"}
TRAINED = [*FAMILIES, ("timm:test_efficientnet", 32), pytest.param("timm:test_mambaout", 32, marks=pytest.mark.long)]


def images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(count, side, side, 3, generator=torch.Generator().manual_seed(seed))
    return made.permute(0, 3, 1, 2)


def batch(config: Config, step: int) -> TwoViews:
    views = [images(config.batch_size, config.image_size, 10 * step + view) for view in (1, 2)]
    return TwoViews(*views, torch.arange(config.batch_size))


def weights(step: TrainStep) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone() for part, named in step.model.state().items() for name, value in named.items()
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize(("arch", "side"), TRAINED)
def test_a_step_trains_and_a_resumed_run_continues_it(arch, side):
    """Features are those of timm's own module; a run that is resumed equals one that was not."""
    config = recipe("moco-v2", arch=arch, **SMALL | {"image_size": side})
    run = TrainStep(config, CPU, 4)
    before = weights(run)
    run(batch(config, 0), 0)
    state = copy.deepcopy(run.state())
    assert float(looked_at(run)["spoilt"]) == 0  # also where there is no BatchNorm
    run(batch(config, 1), 1)
    resumed = TrainStep(config, CPU, 4)
    resumed.load_state(state)
    resumed(batch(config, 1), 1)
    assert_same(weights(run), weights(resumed))
    trained = [name for name, value in run.model.named_parameters() if value.requires_grad]
    moved = [n for n in trained if not torch.equal(before[n], weights(run)[n])]
    assert len(moved) > 0.9 * len(trained)  # of a narrow one, some gates are zero


@pytest.mark.parametrize("arch", ["timm:test_resnet", "timm:test_vit", "timm:mobilenetv3_small_050"])
def test_features_are_those_of_timm_without_a_classifier(arch):
    torch.manual_seed(0)
    ours = backbone(arch, image_size=32).eval()
    size = {"img_size": 32} if arch == "timm:test_vit" else {}
    theirs = timm.create_model(arch.removeprefix("timm:"), num_classes=0, **size).eval()
    theirs.load_state_dict(ours.state_dict())
    features = ours(images(2, 32))
    torch.testing.assert_close(features, theirs(images(2, 32)))
    assert features.shape == (2, ours.out_dim)


def test_building_draws_the_same_weights_each_time():
    """What timm says of an encoder is looked up once, which must not move the generators."""
    traits.cache_clear()
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(backbone("timm:test_convnext", image_size=64).state_dict())
    assert_same(*built)


def test_an_encoder_says_its_size_and_normalisation():
    own = parse(["--arch", "timm:test_vit"])
    assert (own.image_size, own.mean, own.std) == (160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for spec in own.view_pair:
        assert (spec.image_size, spec.mean, spec.std) == (160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    given = parse(["--arch", "timm:test_vit", "--image-size", "224", "--mean", "0.485", "0.456", "0.406"])
    assert (given.image_size, given.mean, given.std) == (224, (0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    assert parse(["--arch", "resnet18"]).image_size == 224
    assert parse(["--recipe", "demo", "--arch", "timm:test_vit"]).image_size == 40  # the recipe's own
    assert Config.from_dict(own.to_dict()) == own
    assert MoCo(replace(own, image_size=32, queue_size=8)).encoder.backbone.image_mean == own.mean


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "timm:convnext_tny"}, "has no convnext_tny; did you mean timm:convnext_tiny"),
        ({"arch": "timm:convnext_tiny.fb_in99k"}, r"Invalid pretrained tag \(fb_in99k\).* Use timm:convnext_tiny"),
        ({"arch": "convnext_tiny"}, r"unknown --arch 'convnext_tiny'; known: resnet10.*timm:NAME"),
        ({"arch": "timm:"}, "unknown --arch 'timm:'"),
        (
            {"arch": "timm:test_vit", "image_size": 100},
            "100 does not fit .* multiples of 16; use 96 or 112",
        ),
        (
            {"arch": "timm:swin_tiny_patch4_window7_224", "image_size": 64},
            "--image-size 64 does not fit .* multiples of 28; use 56 or 84",
        ),
        ({"arch": "timm:convnext_atto", "image_size": 16}, "--image-size 16 does not fit --arch timm:convnext_atto"),
        (
            {"arch": "timm:test_convnext", "bn_splits": 2},
            "--bn-splits 2: --arch timm:test_convnext .* has no BatchNorm",
        ),
        (
            {"arch": "timm:test_vit", "batch_norm": "sync"},
            "--batch-norm sync: --arch timm:test_vit .* has no BatchNorm",
        ),
        (
            {"arch": "timm:test_vit", "batch_norm_kernel": "fused"},
            "--batch-norm-kernel fused: --arch timm:test_vit .* has no BatchNorm",
        ),
        (
            {"arch": "timm:levit_128", "image_size": 64, "batch_norm_kernel": "fused"},
            r"--batch-norm-kernel fused: .*\(BatchNorm1d\), which cannot be replaced; leave it out",
        ),
        (
            {"arch": "timm:levit_128", "image_size": 64, "batch_norm_kernel": "fused", "batch_norm": "sync"},
            r"--batch-norm-kernel fused: .*\(BatchNorm1d\), which cannot be replaced; leave it out",
        ),
        ({"arch": "timm:xception"}, r"has renamed xception to legacy_xception; give timm:legacy_xception"),
        (
            {"arch": "timm:densenet121", "image_size": 32, "drop_path": 0.1},
            "--drop-path 0.1: timm's densenet121 has no st",
        ),
        ({"arch": "resnet18", "drop_path": 0.1}, "--drop-path 0.1 applies to encoders of timm, and --arch resnet18"),
        ({"arch": "timm:test_vit", "drop_path": 1.0}, "--drop-path is 1.0; it must be in 0..1, below 1"),
        (
            {"arch": "timm:test_vit", "zero_init_residual": True},
            "--zero-init-residual applies to torchvision's ResNets",
        ),
        ({"arch": "timm:test_vit", "mean": (0.5,)}, "--mean 0.5 has 1 value; give one each for red, green and blue"),
        ({"arch": "timm:test_vit", "std": (0.5, 0.0, 0.5)}, "--std is 0.0; it must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MoCo(replace(moco_v2(), queue_size=8, **{"image_size": 32} | changes))


def test_a_missing_timm_is_named(monkeypatch):
    traits.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"--arch timm:test_vit needs timm: pip install 'fastmoco\[timm\]'"):
        backbone("timm:test_vit")


def test_a_timm_that_is_too_old_is_named(monkeypatch):
    traits.cache_clear()
    monkeypatch.setattr(timm, "__version__", "1.0.29")
    with pytest.raises(ConfigError, match=r"needs timm 1\.0\.30 or newer, and 1\.0\.29 is installed: pip install -U"):
        backbone("timm:test_vit")
    wanted = re.findall(r'"timm>=([\d.]+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert wanted == [timm_encoders.OLDEST] * 2  # of the extra, and for the tests


def activated_norms() -> nn.Module:
    """Of a RegNet's kind and an EfficientNet's: BatchNorms with settings and activations of their own."""
    act = timm.layers.BatchNormAct2d
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), act(8, eps=1e-3, momentum=0.2),
        nn.Conv2d(8, 8, 3, bias=False), act(8, act_layer=nn.SiLU, momentum=0.01),
        nn.Conv2d(8, 8, 3, bias=False), act(8, apply_act=False),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.double()


def by_groups(net: nn.Module, batch: torch.Tensor, groups: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output of timm's own module for each group alone, and the mean of its running statistics."""
    outputs, states = [], []
    for group in batch.chunk(groups):
        one = copy.deepcopy(net)
        # the groups' gradients come together in the module itself
        for mine, whole in zip(one.modules(), net.modules(), strict=True):
            mine._parameters = whole._parameters
        outputs.append(one(group))
        states.append({name: value for name, value in one.named_buffers() if "running" in name})
    return torch.cat(outputs), {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["split", "fused", "sync"])
def test_activations_and_settings_of_timms_batchnorms_are_kept(kind, groups):
    if kind == "sync" and groups > 1:
        pytest.skip("joins what the others split")
    theirs, batch = activated_norms(), images(4, 9).double()
    replaced = copy.deepcopy(theirs)
    if kind == "fused":
        replace_batchnorm(replaced, lambda channels: FusedBatchNorm2d(channels, groups))
    elif kind == "sync":
        replace_batchnorm(replaced, SyncBatchNorm2d)
    else:
        split_batchnorm(replaced, groups)
    replaced = replaced.double()
    assert list(replaced.state_dict()) == list(theirs.state_dict())
    wanted, statistics = by_groups(theirs, batch, groups)
    ours = replaced(batch)
    torch.testing.assert_close(ours, wanted)
    for net, out in ((replaced, ours), (theirs, wanted)):
        out.square().sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
    for (name, a), b in zip(replaced.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
    for name, value in statistics.items():
        torch.testing.assert_close(replaced.get_buffer(name), value)
        theirs.get_buffer(name).copy_(value)
    torch.testing.assert_close(replaced.eval()(batch), theirs.eval()(batch))


@pytest.mark.parametrize("arch", ["timm:test_byobnet", pytest.param("timm:test_efficientnet", marks=pytest.mark.long)])
def test_a_fused_encoder_is_the_same_encoder(arch):
    """ReLUs within a BatchNorm are fused, as of a RegNet; SiLUs follow it."""
    torch.manual_seed(0)
    plain = Encoder(arch, "linear", 8, image_size=32)
    fused = fuse_batchnorm(copy.deepcopy(plain), 2).double()
    plain = split_batchnorm(plain, 2).double()
    views = images(4, 32).double()
    ours, theirs = fused(views), plain(views)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8, msg=lambda m, name=name: f"{name}: {m}")
    norms = [module for module in fused.modules() if isinstance(module, FusedBatchNorm2d)]
    assert norms and any(norm.relu for norm in norms) == (arch == "timm:test_byobnet")


@pytest.mark.parametrize(
    ("arch", "image_size", "side"),
    [
        ("resnet10", 224, 32),
        ("timm:test_convnext", 160, 32),
        ("timm:test_vit", 96, 96),
        # of which timm has none for tests: they take no images of 32 pixels, and are not built for one size
        ("timm:halonet26t", 256, 256),
        ("timm:inception_v3", 299, 299),
    ],
)
def test_the_images_that_settle_the_order_of_gradients_are_of_a_size_that_the_encoder_takes(arch, image_size, side):
    """All ranks pass them before the first step; smaller ones cost less."""
    run = object.__new__(TrainStep)
    run.config, run.device, run.dtype = recipe("moco-v2", arch=arch, image_size=image_size), CPU, None
    images = run._blank_images(small=True)
    assert images.shape == (2, 3, side, side)
    with torch.device("meta"):
        net = backbone(arch, image_size=image_size)
        net(images.to("meta"))


def test_an_encoder_of_overlapping_patches_takes_sides_that_are_no_multiples_of_a_patch():
    """Patches of 7 pixels, 4 apart."""
    assert traits("timm:pvt_v2_b0").step == 1
    for side in (32, 96, 224):
        check_size("timm:pvt_v2_b0", side)


def test_accumulated_micro_batches_equal_split_ones():
    base = recipe("moco-v2", arch="timm:test_byobnet", **SMALL)
    runs = [TrainStep(replace(base, **{name: 2}), CPU, 4) for name in ("accumulate", "bn_splits")]
    for step in range(2):
        for run in runs:
            run(batch(base, step), step)
    for (name, a), b in zip(weights(runs[0]).items(), weights(runs[1]).values(), strict=True):
        if "tracked" not in name:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_without_batchnorm_keys_are_not_shuffled():
    config = recipe("moco-v2", arch="timm:test_vit", **SMALL | {"accumulate": 2})
    model = MoCo(config)
    assert not model.shuffles
    views = images(4, 32)
    alone = torch.cat([nn.functional.normalize(model.encoder(view[None])) for view in views])
    torch.testing.assert_close(model.encode_keys(views, 0), alone, rtol=1e-4, atol=1e-5)


def test_dropped_blocks_follow_from_seed_and_step():
    config = recipe("moco-v2", arch="timm:test_convnext", **SMALL | {"drop_path": 0.5})
    dropping = {
        part: [module for module in net.modules() if getattr(module, "drop_prob", 0)]
        for part, net in MoCo(config).parts().items()
    }
    assert dropping["query_encoder"] and not dropping["key_encoder"]
    end_to_end = MoCo(replace(config, mechanism="end-to-end")).parts()
    assert [m for m in end_to_end["key_encoder"].modules() if getattr(m, "drop_prob", 0)]

    def trained(stop: int | None = None, late: int = 0) -> dict[str, torch.Tensor]:
        run = TrainStep(config, CPU, 4)
        for step in range(2):
            if step == stop:
                state, run = copy.deepcopy(run.state()), TrainStep(config, CPU, 4)
                run.load_state(state)
                torch.rand(7)  # whatever else draws must not matter
            run(batch(config, step), step + late)
        return weights(run)

    whole = trained()
    assert_same(whole, trained(stop=1))
    name = "query_encoder.head.0.weight"
    assert not torch.equal(trained(late=1)[name], whole[name])  # other steps drop other blocks
    assert drop_seed(0, 1, 0) != drop_seed(0, 1, 1)  # and so do other ranks


def test_the_transformers_of_moco_v3():
    """arXiv 2104.02057, table 2 and section 4; position embeddings by the formula, element by element."""
    torch.manual_seed(0)
    net = backbone("moco_v3_vit_small", image_size=64)
    assert {module.num_heads for module in net.modules() if hasattr(module, "num_heads")} == {12}
    assert (net.out_dim, len(net.blocks), net.image_mean) == (384, 12, (0.485, 0.456, 0.406))
    with torch.device("meta"):
        base = sum(parameter.numel() for parameter in backbone("moco_v3_vit_base").parameters())
    assert base == pytest.approx(86e6, rel=0.01)
    held = net.pos_embed.detach().numpy()[0]
    quarter = 384 // 4
    for row in range(4):
        for column in range(4):
            for place in range(quarter):
                omega = 10_000 ** (-place / quarter)
                token = held[1 + row * 4 + column]
                wanted = [np.sin(row * omega), np.cos(row * omega), np.sin(column * omega), np.cos(column * omega)]
                np.testing.assert_allclose(token[place::quarter], wanted, atol=1e-6)
    assert not held[0].any()
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    for name, fans in (("attn.qkv", 384 + 384), ("mlp.fc1", 384 + 4 * 384)):
        bound = (6 / fans) ** 0.5
        weight = net.get_parameter(f"blocks.0.{name}.weight")
        assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
    bound = (6 / (3 * 16 * 16 + 384)) ** 0.5
    assert 0.99 * bound < float(net.patch_embed.proj.weight.abs().max()) <= bound
    ours = {name: value.shape for name, value in net.state_dict().items()}
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0, num_heads=12, img_size=64).state_dict()
    assert ours == {name: value.shape for name, value in theirs.items()}


@pytest.mark.parametrize("mechanism", ["queue", "end-to-end"])
def test_what_moco_v3_freezes_stays_as_it_is(monkeypatch, mechanism):
    sizes = {"image_size": 32, "mechanism": mechanism}
    monkeypatch.setitem(timm_encoders._V3, "moco_v3_vit_small", ("test_vit", {}))  # with as many parts, and small
    traits.cache_clear()
    config = recipe("moco-v2", arch="moco_v3_vit_small", **SMALL | sizes)
    run = TrainStep(config, CPU, 4)
    before = weights(run)
    run(batch(config, 0), 0)
    after = weights(run)
    for part in ("query_encoder", "key_encoder"):
        for name in ("pos_embed", "patch_embed.proj.weight"):
            assert torch.equal(before[f"{part}.backbone.{name}"], after[f"{part}.backbone.{name}"])
    name = "query_encoder.backbone.norm.weight"
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"arch": "resnet10"},
        {"arch": "resnet10", "bn_splits": 2},
        {"arch": "resnet10", "batch_norm_kernel": "fused", "accumulate": 2},
        {"arch": "timm:test_efficientnet", "drop_path": 0.5},
        {"arch": "timm:test_vit", "drop_path": 0.5, "mechanism": "end-to-end"},
    ],
)
def test_activations_computed_again_change_nothing(changes):
    """Gradients, momentum and running statistics after two steps, which a second forward pass would move twice."""
    config = recipe("moco-v2", **SMALL | changes)
    kept, again = TrainStep(config, CPU, 4), TrainStep(replace(config, checkpoint_activations=True), CPU, 4)
    passes: list[int] = []
    for run in (kept, again):
        counted = [0]
        within = [m for n, m in run.model.encoder.backbone.named_modules() if "layer" in n or "block" in n]
        first = next(module for module in within if isinstance(module, nn.Conv2d | nn.Linear))
        first.register_forward_hook(lambda *_, counted=counted: counted.__setitem__(0, counted[0] + 1))
        for step in range(2):
            run(batch(config, step), step)
        passes.append(counted[0])
    assert passes[1] == 2 * passes[0]
    assert_same(weights(kept), weights(again))


@pytest.mark.distributed
@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.long)])
def test_activations_computed_again_change_nothing_on_two_ranks(torchrun, cases):
    """With statistics over both ranks, which are exchanged again during the backward pass."""
    assert torchrun(2, Path(__file__).parent / "scripts" / "recomputed.py", cases).stdout.strip() == "ok"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet10", "cuda_graphs": True}, "--cuda-graphs does not work with --checkpoint-activations"),
        ({"arch": "timm:selecsls42"}, "--arch timm:selecsls42 cannot compute them again; leave it out"),
    ],
)
def test_what_cannot_be_computed_again_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        MoCo(replace(moco_v2(), queue_size=8, image_size=32, checkpoint_activations=True, **changes))


@pytest.mark.parametrize("arch", ["resnet10", "timm:test_vit"])
def test_the_memory_of_a_step_is_counted(arch):
    """As the dry run counts it; a transformer's weights, and less activations where they are computed again."""
    config = recipe("moco-v2", arch=arch, **SMALL | {"image_size": 64})
    kept, again = (step_memory(replace(config, checkpoint_activations=on), 4, 8, None) for on in (False, True))
    model = MoCo(config)
    encoders = [*model.encoder.parameters(), *model.encoder.buffers()]
    assert kept.weights == again.weights == 2 * sum(tensor.nbytes for tensor in encoders)
    assert again.activations < 0.7 * kept.activations
    step_memory(replace(config, mechanism="memory-bank"), 4, 8, None)


def test_the_documented_memory_is_that_of_the_rows():
    root = Path(__file__).parents[2]
    rows = json.loads((root / "benchmarks/results/recomputed.json").read_text())["rows"]
    r50, r50_again, vit, vit_again, convnext, convnext_again = (f"{row['activations_gb']:.1f}" for row in rows)
    said = f"ResNet-50 {r50} GB without and {r50_again} with it, ViT-S {vit} and {vit_again}, "
    said += f"ConvNeXt-T {convnext} and {convnext_again}."
    assert said in " ".join((root / "docs/training.md").read_text(encoding="utf-8").split())
