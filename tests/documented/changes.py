"""What is changed in a documented line before it is run, and why: nothing else is. Each entry must fit some line."""

from __future__ import annotations

import re
from typing import NamedTuple


class Change(NamedTuple):
    """One substitution.

    Attributes:
        pattern: Regular expression that is searched for in the line.
        by: What replaces it, as in re.sub; None: the line is parsed and not run.
        why: The reason.
    """

    pattern: str
    by: str | None
    why: str


GPUS, HOURS = "needs several GPUs", "takes hours"
CHANGES = [
    # not run at all
    Change(r"^(docker|kubectl|sbatch) ", None, "needs a container runtime or a cluster"),
    Change(r"\bURL\b", None, "needs the address of the repository, and the internet"),
    Change(r"pip install fastmoco-\S+\.whl", None, "tests/test_product.py builds a wheel and installs it"),
    Change(r"^(python -m )?pip install --target kit", None, "needs the internet"),
    Change(r"^tensorboard ", None, "serves until it is stopped"),
    Change(r"--ray-address", None, "needs a Ray cluster"),
    Change(r"^fastmoco (verify|info) s3://", None, "a set that only a cluster has packed"),
    Change(r"^fastmoco completion zsh", None, "the folder is named as zsh names it, and these lines are run by bash"),
    Change(r"gpu_suite\.py", None, "needs a GPU; `make test-long` runs it with --device cpu --tiny"),
    Change(r"^make (test|test-long|lint|demo|docs|format)$", None, "is what runs this, or takes as long as all of it"),
    Change(r"FASTMOCO_KILLS=25 ", None, "takes minutes; `make test-long` runs it"),
    Change(r"imgs_per_sec\.py --peers", None, "needs other projects' loaders"),
    # run with less
    Change(r"^(pip install torch torchvision) --index-url \S+ && ", "", "needs the internet"),
    Change(r"^pip install -e ", "pip install ", "the running installation stays as it is"),
    Change(r"^pip install ", "pip install --dry-run --no-deps --no-build-isolation ", "needs the internet"),
    Change(r"--nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400", "--nproc-per-node 2", GPUS),
    Change(r"--nproc-per-node (8|gpu)", "--nproc-per-node 2", GPUS),
    Change(r"--images s3://bucket/set", "--images shards/", "a set that only a cluster has packed"),
    Change(r"--shards s3://bucket/crawl-set", "--shards shards/", "a set that only a cluster has packed"),
    Change(r"/shared/", "", "a folder of a cluster"),
    Change(
        r"'s3://bucket/laion/[^']*' --images-per-epoch 1000000",
        "tars/00000.tar --images-per-epoch 64",
        "a set of others",
    ),
    Change(
        r"((?:fastmoco|-m fastmoco) train --recipe moco-v3-r50.*)",
        r"\1 --arch resnet10 --image-size 32 --steps 2 --batch-size 32 --threads 1",
        HOURS,
    ),
    Change(
        r"((?:fastmoco|fastmoco\.|-m fastmoco) ?train\b(?!.*--show)(?!.*moco-v3).*)",
        r"\1 --recipe demo --steps 2 --batch-size 16 --threads 1",
        HOURS,
    ),
    Change(r"(fastmoco linear .*)", r"\1 --epochs 1 --image-size 32 --batch-size 16", HOURS),
    Change(r"(fastmoco finetune .*)", r"\1 --epochs 1 --image-size 32 --batch-size 8 --threads 1", HOURS),
    Change(
        r"(fastmoco detect .*)",
        r"\1 --iterations 1 --batch-size 2 --min-sizes 80 --test-size 80 --max-size 128 "
        "--test-proposals 30 --threads 1",
        HOURS,
    ),
    Change(r"(fastmoco detect .*VOC.*)", r"\1 --classes disc box wedge", "small sets of made scenes stand for VOC"),
    Change(
        r"(fastmoco detect .*--init (?!random).*)", r"\1 --arch resnet10", "the encoder is that of a short training"
    ),
    Change(r"(fastmoco demo .*)", r"\1 --steps 2", "takes minutes"),
    Change(
        r"(imgs_per_sec\.py(?!.*--peers).*)", r"\1 --arch resnet10 --seconds 0.1 --repeats 1 --image-size 32", HOURS
    ),
    Change(r"(kernels\.py .*)", r"\1 --shapes 8 64 16 --repeats 1", HOURS),
    Change(r"(queue_rounding\.py .*)", r"\1 --k 512", "takes a minute"),
    Change(r"(/step\.py .*)", r"\1 --arch resnet10 --batch-size 8 --image-size 32 --queue-size 64 --steps 1", HOURS),
    Change(r"communication\.py --ranks 2 4 8", "communication.py --ranks 2 --image-size 32 --repeats 1", HOURS),
    Change(r"(packing\.py .*)", r"\1 --images 16 --resized 8 --large 0 --short-side 32 --repeats 1", HOURS),
    Change(
        r"(revisions\.py .*)--against REVISION(.*)",
        r"\1--against HEAD\2 --images 16 --short-side 32 --image-size 32 --repeats 1 --seconds 0.1",
        HOURS,
    ),
    Change(r"(probes\.py .*)", r"\1 --epochs 1 --results results", HOURS),
    Change(r"(learning\.py .*)", r"\1 --seeds 0 --steps 2 --results results", HOURS),
    Change(r"(hour\.py .*)--pace 3", r"\1--pace 1 --pace-steps 1 --variants zero-init --results results", HOURS),
    Change(r"(hour\.py (?!.*--pace).*)", r"\1 --minutes 0.1 --seeds 0 --variants zero-init --results results", HOURS),
    Change(r"--images 1000000000 ", "--images 1000000 ", "the estimate of a billion takes a minute"),
    Change(r"(backends\.py .*)", r"\1 --images 8 --sizes 32", HOURS),
]


def changed(text: str) -> str | None:
    """The line as it is run; None if it is not run."""
    for change in CHANGES:
        if re.search(change.pattern, text):
            if change.by is None:
                return None
            text = re.sub(change.pattern, change.by, text, count=1)
    return text


def unused(lines: list[str]) -> list[str]:
    """Patterns that fit no line as it is written."""
    return [change.pattern for change in CHANGES if not any(re.search(change.pattern, line) for line in lines)]
