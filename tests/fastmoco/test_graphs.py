"""--cuda-graphs: what it is refused with, and on a GPU the same steps as without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmoco.config import ConfigError
from fastmoco.recipes import recipe
from fastmoco.trainer.step import TrainStep
from pipelines import TwoViews

CONFIG = replace(recipe("demo"), batch_size=8, image_size=64, queue_size=40, lr=0.05, precision="fp32")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compile": True}, "--compile: both replace the encoders' launches"),
        ({"batch_norm": "sync"}, "--batch-norm sync: its messages"),
        ({"symmetric": True}, "--symmetric: a graph cannot run twice"),
        ({"mechanism": "end-to-end"}, "--mechanism end-to-end: it has not been tested"),
    ],
)
def test_settings_that_graphs_do_not_allow_are_refused(settings, said):
    with pytest.raises(ConfigError, match=f"^--cuda-graphs does not work with {said}.*; leave out one of them$"):
        replace(CONFIG, cuda_graphs=True, **settings)
    replace(CONFIG, **settings)


def test_a_cpu_has_no_graphs(shard_sets, tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["--recipe", "demo", "--shards", shard_sets / "train", "--out", tmp_path / "run", "--batch-size", "16"]
    ended = in_process("-m", "fastmoco.train", *arguments, "--steps", "2", "--cuda-graphs", check=False)
    said = "fastmoco train: --cuda-graphs needs an NVIDIA GPU, and this run uses a CPU; leave it out\n"
    assert (ended.returncode, ended.stderr) == (2, said)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{}, {"bn_splits": 2}, {"accumulate": 2}, {"batch_norm_kernel": "fused"},
                                      {"precision": "fp16"}, {"precision": "bf16"},
                                      {"mechanism": "memory-bank"}])  # fmt: skip
def test_steps_with_graphs_equal_those_without(settings):
    device, results = torch.device("cuda"), []
    for graphs in (False, True):
        config = replace(CONFIG, **settings, cuda_graphs=graphs)
        train = TrainStep(config, device, total_steps=4, samples=40)
        losses = []
        for step in range(4):
            generator = torch.Generator(device).manual_seed(step)
            views = torch.randn(2, 8, 3, 64, 64, generator=generator, device=device, dtype=train.dtype)
            query, key = (view.contiguous(memory_format=torch.channels_last) for view in views)
            losses.append(train(TwoViews(query, key, torch.arange(8)), step).loss.detach())
        counts = {int(b) for name, b in train.model.encoder.named_buffers() if "tracked" in name}
        results.append((torch.stack(losses), counts))
    (eager, counted), (captured, counted_too) = results
    # the capture may choose other algorithms of cuDNN; BatchNorm over eight images then amplifies the difference
    tolerance = 1e-3 if CONFIG.precision == settings.get("precision", "fp32") else 5e-2
    torch.testing.assert_close(captured, eager, rtol=tolerance, atol=tolerance)
    assert counted_too == counted
