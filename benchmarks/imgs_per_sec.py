"""Images per second of the loader alone, of the model alone, and of both together.

    python benchmarks/imgs_per_sec.py [--shards PATH] [--arch NAME] [--batch-size N] [--json OUT]
    torchrun --nproc-per-node N benchmarks/imgs_per_sec.py [the same flags]
    python benchmarks/imgs_per_sec.py --peers [--device cpu|cuda] [--shards PATH] [--only NAME ...] [--json OUT]

The model alone trains on one constant batch. The smaller of the two rates bounds the rate of both together; on a CPU,
where they share the cores, the bound is 1 / (1/loader + 1/model). A fourth measurement runs the loader beside a sleep
as long as the model's step: what still waits for data then is latency, not a lack of cores. All are measured in turn,
several times; the median counts. An image counts once, whatever the number of views. Under torchrun the rates of all
ranks, which work at the same time, are compared with that of one process alone. With --peers, the loader is
compared with those of other projects instead, on a GPU or on a CPU.
"""

from __future__ import annotations

from _arguments import Args, check
from _command import BenchmarkError, script
from _results import write_beside, write_json


def run(args: Args) -> None:
    """Measure, print the table, and write the figures."""
    check(args)
    if args.peers:
        run_peers(args)
        return
    import _ranks  # after the flags are checked: importing torch takes seconds
    import _rates
    from fastmoco.ranks.world import world

    with world() as here:
        if here.size > 1:
            _ranks.run(args, here)
        else:
            _rates.run(args, here.device)


def run_peers(args: Args) -> None:
    """Compare the loader with others, print the table, and write figures, table and chart."""
    import torch
    from rich.console import Console

    from _peers.compare import Settings, compare
    from _peers.show import bar_chart, markdown
    from _sources import shard_set
    from pipelines._threads import cores_of_rank

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda: torch finds no CUDA device; use --device cpu")
    asked = Settings(
        args.batch_size or (64 if device == "cpu" else 256), args.image_size or 224, args.threads or cores_of_rank(),
        args.images, args.seconds, args.repeats, args.only, device,
    )  # fmt: skip
    with shard_set(args.shards, asked.batch_size, asked.image_size) as (shards, note):
        result = compare(shards, asked, Console()) | {"shards": note}
    print(markdown(result), end="")
    if args.json:
        write_json(args.json, result)
        write_beside(args.json, markdown(result), bar_chart(result))


if __name__ == "__main__":
    script(Args, run)
