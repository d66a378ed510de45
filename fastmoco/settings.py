"""The settings of a training run, a dataclass for each group of flags; `fastmoco.config.Config` joins them.

A field's name is the flag's and the key in config.json; its docstring is the flag's help. What a pipeline needs is in
`pipelines.options`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fastmoco import flags
from fastmoco.views import pair_of
from pipelines.augmentation import IMAGENET_MEAN, IMAGENET_STD, ViewPair
from pipelines.views_file import recorded

RECORDED = ("environment", "probe", "finetune", "detect")
"""Keys of a config.json that are no settings: what the run was made with, and what determines a probe's result, or the
weights of a classifier or detector."""


@dataclass(frozen=True)
class DataSettings:
    """The images, and their views."""

    shards: str | Path | tuple[str | Path, ...] = Path("shards")
    """Shard set to train on, packed by fastmoco pack: a folder, or a URL such as s3://bucket/prefix. Or several sets,
    which an epoch takes together; see --weights."""
    stream: str | None = None
    """WebDataset tars to read sequentially, in place of --shards: paths or URLs with braces, such as
    s3://bucket/{00000..00099}.tar."""
    images_per_epoch: int | None = None
    """Images per epoch of --stream; default: the sum over img2dataset's NNNNN_stats.json files beside the tars."""
    image_size: int = 224
    """Width and height of a view in pixels; for an encoder of timm its own."""
    # progressive resizing: arXiv 2104.00298, section 4
    early_sizes: tuple[str, ...] = ()
    """Smaller views at the beginning, which take less time. 32@0.5 48@0.75: views of 32 pixels up to half of the run,
    of 48 up to three quarters, and from there on of --image-size, which probes and exports have."""
    augmentation: Literal["v1", "v2", "v3"] | None = "v1"
    """Augmentation of MoCo v1; of v2, which adds blur; or of v3, which blurs every query, and solarizes some keys."""
    crop_min: float | None = None
    """Smallest share of an image's area that a crop covers; default: 0.2. MoCo v3 has 0.08 for its ViTs."""
    views: Path | ViewPair | None = None
    """TOML file with the views, in place of --augmentation (docs/how-to/views.md)."""
    channels: int = 3
    """Channels of the views, and of the encoder's input: 3; or 1, for sets of which all images are grey. With 3, a grey
    image has its value in each."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Means of red, green and blue, in 0..1, that are subtracted from views; for an encoder of timm its own. With
    --channels 1 one value; default: the average of the three."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviations that views are divided by; for an encoder of timm its own. With --channels 1 as --mean."""

    @property
    def sets(self) -> tuple[str | Path, ...]:
        """The shard sets, of which there may be one."""
        return self.shards if isinstance(self.shards, tuple) else (self.shards,)

    @property
    def view_pair(self) -> ViewPair:
        """The augmentation of both views."""
        return pair_of(self)


@dataclass(frozen=True)
class ModelSettings:
    """Encoder, projection head and BatchNorm."""

    arch: str = "resnet50"
    """Encoder: a torchvision ResNet, ResNeXt or wide ResNet by name; resnet10 (one block per stage);
    resnext50_32x8d; resnet50_w2 or resnet50_w4 (all channels × 2 or × 4); timm:NAME, any encoder of timm (extra
    `timm`); moco_v3_vit_small or moco_v3_vit_base (MoCo v3's, by timm)."""
    init: Path | None = None
    """Initial weights: a run or checkpoint of fastmoco train (both encoders and the head), or any file with an encoder
    (docs/evaluation.md). Queue and optimiser are new. A resumed run ignores it."""
    head: Literal["linear", "mlp", "mlp-bn"] = "linear"
    """Projection head: linear (v1), an MLP with one hidden layer (v2), or one with BatchNorm after each layer (v3)."""
    # arXiv 2104.02057, section 4.1
    head_layers: int = 2
    """Layers of --head mlp-bn."""
    head_width: int = 4096
    """Dimension of the hidden layers of --head mlp-bn and of --predictor."""
    predictor: Literal["none", "mlp", "mlp-bn"] = "none"
    """Prediction head behind the query encoder's projection (v3): an MLP of two layers with BatchNorm between them;
    mlp-bn: and after the last one."""
    zero_init_residual: bool = False
    """Initialise the last BatchNorm weight of each residual block to zero, so that blocks start as the identity."""
    drop_path: float = 0.0
    """Stochastic depth: rate at which the query encoder drops its last residual block, for an image; it rises linearly
    from the first block on. For encoders of timm that have it; keys are encoded without."""
    # 128: arXiv 1911.05722, section 3.3
    feature_dim: int = 128
    """Dimension of the projected features and of the queue's keys."""
    batch_norm: Literal["shuffle", "sync", "plain"] = "shuffle"
    """BatchNorm statistics: shuffle: per device, with the key images shuffled across devices; sync: over the global
    batch; plain: per device without shuffling, which leaks batch identity through BatchNorm."""
    bn_splits: int = 1
    """BatchNorm groups per device, with shuffled keys: simulates the BatchNorm of that many devices on one."""
    batch_norm_kernel: Literal["torch", "fused"] = "torch"
    """Implementation of BatchNorm. torch: torch's own. fused: with ReLU and the residual addition, by Triton on NVIDIA
    GPUs (Ampere or later); all groups of --bn-splits share its launches. On other devices: plain torch, for tests."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """The contrastive loss and its dictionary."""

    mechanism: Literal["queue", "batch", "end-to-end", "memory-bank"] = "queue"
    """Source of the negatives: queue (MoCo); batch: keys of the same batch by the key encoder (v3); end-to-end: the
    same batch, with gradients to both encoders; memory-bank: stored features of all images."""
    symmetric: bool = False
    """Use each view as query and as key, and average the two losses; --mechanism batch adds them, as v3 does."""
    # K: arXiv 1911.05722, section 4.1; m: section 3.2
    queue_size: int = 65_536
    """Number of negatives K: the queue's length, or the entries drawn from the memory bank at each step."""
    queue_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the queue's keys. bfloat16: half the memory, and a third of the matrix products on GPUs."""
    momentum_key: float = 0.999
    """Momentum m of the key encoder."""
    momentum_key_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: m rises from --momentum-key to 1 over the run, along half a cosine."""
    # as in the code of arXiv 1805.01978
    bank_momentum: float = 0.5
    """Momentum of the memory bank's entries."""
    # arXiv 1911.05722, section 3.3, after arXiv 1805.01978; v2 has 0.2
    temperature: float = 0.07
    """Temperature of the loss."""


@dataclass(frozen=True)
class OptimisationSettings:
    """Length of the run, and the optimiser with its schedule."""

    # length, batch, rate, schedule and SGD: arXiv 1911.05722, section 4, for ImageNet-1M
    epochs: int | None = 200
    """Length of the run in epochs."""
    steps: int | None = None
    """Length of the run in steps; overrides --epochs."""
    batch_size: int = 256
    """Images per step, over all ranks."""
    accumulate: int = 1
    """Micro-batches per optimiser step: the activations of 1 / N of --batch-size are in memory at a time. BatchNorm has
    statistics of each, as with --bn-splits N."""
    optimiser: Literal["sgd", "lars", "adamw"] = "sgd"
    """Optimiser: SGD with momentum (v1, v2); LARS, SGD whose rate each weight matrix scales by its norm, for large
    batches (v3, ResNet); AdamW (v3, ViT)."""
    lr: float | None = None
    """Peak learning rate; default: --base-lr × --batch-size / --base-batch-size."""
    base_lr: float = 0.03
    """Peak learning rate at --base-batch-size."""
    base_batch_size: int = 256
    """Batch size for which --base-lr is given."""
    schedule: Literal["cosine", "warmup-cosine", "step", "exponential"] = "step"
    """Learning rate: cosine: decays to zero over the run; warmup-cosine: over what --warmup leaves of it; step: ×
    --decay at each milestone; exponential: × --decay every --decay-steps."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Milestones of --schedule step: fractions of the run, or epochs if above 1. 0.6 and 0.8 are 120 and 160 of 200."""
    decay: float = 0.1
    """Decay factor of --schedule step and exponential."""
    decay_steps: int = 62_500
    """Steps between decays of --schedule exponential."""
    warmup: float = 0.0
    """Fraction of the run over which the learning rate rises linearly to its schedule: 0.1333 for 40 of 300 epochs. v1
    and v2 use none."""
    momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """Weight decay of the optimiser."""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """Parameters with weight decay. all: every one, as in the papers of v1 and v2; matrices: not biases and the weights
    of BatchNorm and LayerNorm."""


@dataclass(frozen=True)
class HardwareSettings:
    """Precision, compilation and repeatability."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the forward pass; auto: bf16 if the hardware supports it, else fp16 on CUDA and fp32 on a CPU."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    cuda_graphs: bool = False
    """Launch the encoders' passes as CUDA graphs, for few images per GPU. Not run on a GPU yet."""
    checkpoint_activations: bool = False
    """Compute the activations of each stage or block again in the backward pass, in place of keeping them: less memory,
    and a third more work. The numbers stay the same."""
    deterministic: bool = False
    """Use only deterministic algorithms, so that a run on GPUs can be repeated bit for bit; slower. Not run on a GPU
    yet. Runs on CPUs are repeatable without it."""


@dataclass(frozen=True)
class RecordSettings:
    """Run folder and log."""

    out: Path | None = None
    """Run folder; default: that of an unfinished run with the same settings in runs/, else a new one,
    runs/RECIPE-ARCH-DATE."""
    resume: str = "auto"
    """auto: resume from the newest checkpoint in --out, if it exists; none: start a new run; or a checkpoint, or a run
    folder, whose newest checkpoint is read."""
    check_every: int = 1000
    """Steps between checks that all ranks hold the same weights and keys; 0: never."""
    log_every: int = 10
    """Steps between log lines."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """When values become infinite or not a number. stop: end; the last sound checkpoint stays. rollback: continue from
    it, and skip the batches since."""
    max_rollbacks: int = 3
    """Number of rollbacks within 10,000 steps; the next fault ends the run."""
    profile: int = 0
    """Steps to profile, after the first eight of this start; 0: none. Prints where a step goes, and writes a trace to
    RUN/profile.json.gz."""
    rank_timeout: float = 10.0
    """Minutes that a rank waits for another one, which may hang; then all end with the cause, and can be restarted. It
    must be longer than the slowest checkpoint, and than FASTMOCO_STORE_WAIT by a minute."""
    notify: str | None = None
    """Command that is run when the run stops, fails or finishes, and for each warning: on rank 0, without a shell, with
    FASTMOCO_EVENT and others in its environment and the status as JSON on stdin (docs/training.md)."""
    wandb: str | None = None
    """Project of Weights & Biases to record the run in as well; extra `wandb`. WANDB_MODE=offline records on disk."""


@dataclass(frozen=True)
class CheckpointSettings:
    """When checkpoints are written, where, and which are kept."""

    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time alone. The last step always writes one."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints, also besides --checkpoint-every; 0: by steps alone; default: 10, or 0 with
    --checkpoint-every."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints to keep; older ones are deleted."""
    keep_every: int = 0
    """Epochs between checkpoints that are written at the epoch's end and kept besides the newest; 0: none."""
    checkpoint_space: float | None = None
    """Bound in GB (10^9 bytes) of the checkpoints together: older ones are deleted, also of --keep-every; never the
    newest. While one is written, it comes on top."""
    checkpoint_copy: str | None = None
    """Second place, a folder or a URL such as s3://bucket/run, to which checkpoints and records are copied in the
    background; a machine whose run folder is empty continues from it by the same command."""
    disk_patience: float = 30.0
    """Minutes for which training goes on while checkpoints or records cannot be written, as on a full disk."""

    @property
    def minutes_between_checkpoints(self) -> float:
        """Minutes between checkpoints; 0 where they are due by steps alone."""
        if self.checkpoint_minutes is not None:
            return self.checkpoint_minutes
        return 0.0 if self.checkpoint_every else 10.0

    def check_checkpoints(self) -> None:
        """Raise ConfigError for values that cannot work."""
        flags.at_least(1, self, "keep_checkpoints")
        flags.at_least(0, self, "checkpoint_every", "checkpoint_minutes", "keep_every", "disk_patience")
        flags.positive(self, "checkpoint_space")


@dataclass(frozen=True)
class EvaluationSettings:
    """The kNN probe during training."""

    knn_every: int = 0
    """Epochs between kNN probes; 0: never. Needs --knn-val."""
    knn_train: str | Path | None = None
    """Labelled shard set with the neighbours; default: --shards, if it is one set."""
    knn_val: str | Path | None = None
    """Labelled shard set to classify."""
    knn_k: int = 20
    """Number of neighbours k."""
    knn_temperature: float = 0.07
    """Temperature of the weighted vote."""


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a settings dataclass as JSON and checkpoints hold them: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, ViewPair):
        return recorded(value)
    # JSON has neither; weights_only=True, with which checkpoints are read, refuses a Path
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
