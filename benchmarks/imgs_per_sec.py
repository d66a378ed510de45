"""Images per second of the loader alone, of the model alone, and of both together.

    python benchmarks/imgs_per_sec.py [--shards PATH] [--arch NAME] [--batch-size N] [--json OUT]
    python benchmarks/imgs_per_sec.py --peers [--shards PATH] [--batch-size N] [--only NAME ...] [--json OUT]

The model alone trains on one batch that never changes, so the smaller of the two rates is the most that both
together can reach; on a CPU they share its cores, and 1 / (1/loader + 1/model) is. The loader runs once more beside a
sleep as long as the model's step: what is still waited for then is latency, not want of cores. All are measured in
turn, several times; the median counts. An image counts once, however many views are made of it. With --peers, the
loader on the CPU is measured against other people's instead.
"""

from __future__ import annotations

from _arguments import Args, check
from _command import BenchmarkError, script
from _results import write_beside, write_json
from fastmoco.results import check_file


def run(args: Args) -> None:
    """Measure what is asked for, print the table, and write the figures."""
    check(args)
    check_file("--json", args.json)
    if args.peers:
        run_peers(args)
        return
    from _rates import run  # after the flags are checked: torch takes seconds to import
    from fastmoco.distributed import world

    with world() as here:
        if here.size > 1:
            raise BenchmarkError("this measures one process; start it with python, not with torchrun")
        run(args, here.device)


def run_peers(args: Args) -> None:
    """Measure the loader against others, print the table, and write figures, table and chart."""
    from rich.console import Console

    from _peers.compare import Settings, compare
    from _peers.show import bar_chart, markdown
    from _sources import shard_set
    from pipelines._threads import cores_of_rank

    asked = Settings(
        args.batch_size or 64, args.image_size or 224, args.threads or cores_of_rank(), args.images, args.seconds,
        args.repeats, args.only,
    )  # fmt: skip
    with shard_set(args.shards, asked.batch_size, asked.image_size) as (shards, note):
        result = compare(shards, asked, Console()) | {"shards": note}
    print(markdown(result), end="")
    if args.json:
        write_json(args.json, result)
        write_beside(args.json, markdown(result), bar_chart(result))


if __name__ == "__main__":
    script(Args, run)
