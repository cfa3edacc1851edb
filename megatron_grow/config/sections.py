"""The sections of a run file besides ``model``, ``parallel`` and ``stages``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_grow.config.batch import BatchShape
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import (
    Count,
    CountOrZero,
    Minutes,
    NotNegative,
    PathText,
    Positive,
    Range,
    Seed,
    Share,
    ShareBelowOne,
    check_fields,
)


@dataclass
class RunSection:
    """What the run is called and where it writes."""

    name: str = "run"
    output_dir: PathText = "runs/run"
    """Gets metrics.jsonl, tensorboard/, checkpoints/ and the resolved config."""
    overwrite: bool = False
    """Set the run that output_dir and checkpoint.save hold aside, in a dated directory beside, and
    begin anew; without it, such a beginning is refused."""
    seed: Seed = 1234
    """Decides initial weights, fresh layers and the order of samples, on every layout."""

    def __post_init__(self) -> None:
        check_fields(self, "run.")


@dataclass
class TrainSection:
    """How long, in which batches, in which precision."""

    train_iters: Count = 1000
    """Optimizer steps of the whole run, all stages together."""
    global_batch_size: Count = 8
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: Count = 1
    """Sequences in one forward pass of one rank."""
    seq_length: Count = 1024
    """Tokens in one sequence, at its longest: a stage's may be a part of it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps fp32 main parameters, gradients and optimizer state."""
    log_interval: Count = 10
    """Steps between rows of metrics.jsonl."""
    layers_interval: CountOrZero = 0
    """Steps between rows on the sizes of layers (docs/layers.md), which the first step of a stage
    has besides; 0: none. An update is then kept beside the weights for a moment."""
    dying_share: ShareBelowOne = 0.5
    """With ``layers_interval``: below what share of what others have a new layer is told to die;
    0: never."""
    eval_interval: Count = 100
    """Steps between evaluations; the last step and both sides of a growth are always evaluated."""
    eval_iters: CountOrZero = 10
    """Global batches in one evaluation, always the same tokens; 0 evaluates never."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Activation recomputation: of whole layers, or (``selective``) of the attention core alone.
    Flash attention stores next to nothing of the core, so under it ``selective`` saves no memory.
    torch's attention, which layers use here, is flash attention on a GPU in bf16."""
    recompute_num_layers: Count = 1
    """With full recomputation: layers in one checkpointed piece."""
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Layer specification; transformer_engine needs Transformer Engine and a GPU."""
    fp8: Literal["e4m3", "hybrid"] | None = None
    """Matrix products in 8 bits, in layers of Transformer Engine alone: all in e4m3, or (hybrid)
    those of the backward pass with e5m2 gradients."""
    non_finite: Literal["stop", "skip"] = "stop"
    """At a loss or a gradient that is NaN or infinite: stop before the update, or go on without it,
    with the next step and the next samples."""
    max_skipped_iters: Count = 10
    """With ``non_finite: skip``: steps of the whole run without an update; one more stops it."""
    max_loss: Positive | None = None
    """A larger loss of a step is as one that is not finite; absent: every number is let pass."""
    distributed_timeout_minutes: Minutes = 10
    """How long ranks wait for each other in a training step, or in a batch of an evaluation, before
    the run ends. A rank without a sign of life for two minutes ends it earlier."""
    pause_timeout_minutes: Minutes = 30
    """The same of what training pauses for: the start of the run, a growth, a save."""

    def __post_init__(self) -> None:
        check_fields(self, "train.")
        if self.fp8 is not None and self.transformer_impl != "transformer_engine":
            raise UserError(
                f"train.fp8={self.fp8} needs train.transformer_impl: transformer_engine; layers of "
                f"{self.transformer_impl} would ignore it"
            )

    @property
    def batch(self) -> BatchShape:
        """What a step reads in stages that do not say otherwise."""
        return BatchShape(self.seq_length, self.global_batch_size, self.micro_batch_size)


@dataclass
class OptimizerSection:
    """The update rule; names are those of megatron-core's ``OptimizerConfig``."""

    optimizer: str = "adam"
    """adam, sgd, muon, muon_nsgd, or an import path (package.module:Class)."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of an optimizer's own: those that this section does not have."""
    multipliers: list[dict[str, Any]] = field(default_factory=list)
    """Tensors that are updated otherwise: ``{tensors: PATTERNS, lr: 1, weight_decay: 1, eps: 1}``,
    each a multiple of what it is for others; of all entries that a tensor is in, the product."""
    lr: Positive = 1e-3
    """Peak learning rate (of muon_nsgd's shared rate too)."""
    min_lr: NotNegative = 0.0
    weight_decay: NotNegative = 0.01
    """Decoupled (under sgd: added to the gradient); not applied to biases and norms."""
    clip_grad: NotNegative = 1.0
    """Largest global gradient norm; 0 does not clip."""
    adam_beta1: ShareBelowOne = 0.9
    adam_beta2: ShareBelowOne = 0.95
    adam_eps: Positive = 1e-8
    sgd_momentum: ShareBelowOne = 0.9
    muon_lr: Positive | None = None
    """Peak learning rate of the matrices under muon; absent: lr."""
    muon_momentum: ShareBelowOne = 0.95
    muon_use_nesterov: bool = True
    muon_num_ns_steps: Annotated[int, Range(least=1, most=100)] = 5
    """Newton-Schulz iterations."""
    muon_scale_mode: Literal["spectral", "unit_rms_norm", "shape_scaling"] = "shape_scaling"
    """Factor of an orthogonalised (out, in) update: sqrt(max(out, in)), sqrt(out / in) or
    sqrt(max(1, out / in))."""
    muon_embeddings: bool = True
    """muon_nsgd only: 2-D embeddings and head under Muon (the paper's literal reading) instead of
    normalised SGD."""

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")
        for name in ("lr", "muon_lr"):
            peak = getattr(self, name)
            if peak is not None and peak < self.min_lr:
                raise UserError(
                    f"optimizer.min_lr={self.min_lr} must not exceed optimizer.{name}={peak}"
                )


@dataclass
class ParametrizationSection:
    """How init, rates and multipliers follow from the sizes of the run's target."""

    name: str = "standard"
    """standard, mup, completep, spectral, or an import path (package.module:Class)."""
    base: dict[str, Any] = field(default_factory=dict)
    """Fields of ``model`` in which the base model differs from the target: that for which rates,
    decay, epsilon and init_method_std are meant. Multipliers that it does not give are plain."""
    target: dict[str, Any] = field(default_factory=dict)
    """Fields of ``model`` in which the target differs from ``model``; absent: none. The branch of a
    run ends with a smaller model, and keeps the rates of the run that it left."""
    depth_exponent: Annotated[float, Range(least=0, most=1)] = 1.0
    """completep only: residual branches are multiplied by (depth / base depth)^-this; 1 is
    CompleteP, 0.5 depth-muP."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of a parametrization's own: those that this section does not have."""

    def __post_init__(self) -> None:
        check_fields(self, "parametrization.")


@dataclass
class ScheduleSection:
    """The learning rate over the run, as a function of the global step alone."""

    lr_decay_style: Literal["WSD", "cosine", "linear", "constant"] = "WSD"
    lr_warmup_fraction: Share = 0.02
    """Share of lr_decay_iters in linear warm-up."""
    lr_wsd_decay_fraction: Share = 0.1
    """WSD: share of lr_decay_iters in the final decay."""
    lr_wsd_decay_style: Literal["linear", "cosine", "minus_sqrt", "exponential"] = "linear"
    lr_decay_iters: Count | None = None
    """Steps that the style is laid out over; absent: train_iters."""
    cooldown_iters: CountOrZero = 0
    """Last steps of the run, in which the rate falls from where the style has it to min_lr, as
    lr_wsd_decay_style says: for a run that ends before its style has decayed."""

    def __post_init__(self) -> None:
        check_fields(self, "schedule.")
        if self.lr_warmup_fraction + self.lr_wsd_decay_fraction > 1.0:
            raise UserError(
                f"schedule.lr_warmup_fraction={self.lr_warmup_fraction} and "
                f"lr_wsd_decay_fraction={self.lr_wsd_decay_fraction} overlap; together at most 1"
            )


@dataclass
class DataSection:
    """Corpora in Megatron's indexed format, and the tokenizer that made them."""

    train_data_path: list[str | float] = field(default_factory=list)
    """Prefixes ``[a]`` or weighted prefixes ``[0.3, a, 0.7, b]``."""
    valid_data_path: list[str | float] = field(default_factory=list)
    """The same for validation; empty: the share of train_data_path that ``split`` names."""
    split: str = "969,30,1"
    """Shares of train, validation and test when valid_data_path is empty."""
    tokenizer: PathText = "bytes"
    """``bytes``, ``gpt2`` (with vocab_file and merge_file), or the path of a tokenizer.json or, its
    name ending in ``.txt``, of a WordPiece vocabulary."""
    vocab_file: PathText | None = None
    merge_file: PathText | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Of samples, where the architecture leaves a choice: which tokens are masked, say."""
    cache_dir: PathText | None = None
    """Where dataset indices are cached; absent: output_dir/cache."""
    num_workers: Annotated[int, Range(least=0, most=1024)] = 0
    """Loader processes of each rank."""
    prefetch: CountOrZero = 2
    """Micro-batches that a thread of a rank reads, and copies to its GPU, ahead of their turn; a
    CPU reads each when it is wanted."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")


FIXED = (
    "run.seed",
    "data.train_data_path",
    "data.valid_data_path",
    "data.split",
    "data.tokenizer",
    "data.vocab_file",
    "data.merge_file",
    "data.options",
    "optimizer.optimizer",
    "parametrization.name",
    "parametrization.base",
    "parametrization.depth_exponent",
    "parametrization.options",
)
"""Fields that a run keeps when it is resumed: a change would be another run, under its name."""


@dataclass
class CheckpointSection:
    """When to save, what to keep, where to start from."""

    save: PathText | None = None
    """Directory; absent: output_dir/checkpoints."""
    save_interval: CountOrZero = 1000
    """Steps between checkpoints; 0 saves only at the end and on a signal."""
    async_save: bool = False
    """Train on while a checkpoint is written; a copy of what each rank writes is in the host's
    memory until it is."""
    keep_last: CountOrZero = 0
    """Checkpoints to keep; 0 keeps all."""
    save_optimizer: bool = True
    load: PathText | None = None
    """What to resume. ``auto``: the newest checkpoint of this run, if there is one. A directory: a
    step of this run, to which it goes back, or a checkpoint from elsewhere that it goes on from
    until it has its own. Absent: the run begins."""
    initial: PathText | None = None
    """Another run's checkpoint, or a model, that this run's first stage begins from or grows out
    of; once the run has a checkpoint of its own, ``load: auto`` resumes that."""
    source_format: str | None = None
    """Format of what ``load`` or ``initial`` names, by import path (``package.module:Class``);
    those that are built in are recognised."""
    start: Literal["afresh", "continue"] = "afresh"
    """A run that begins from ``initial``: at step 0 with the first sample, or with the step, the
    schedule and the samples where that checkpoint stands."""
    allow_changes: list[Literal[FIXED]] = field(default_factory=list)  # type: ignore[valid-type]
    """Fields that may differ from those of the checkpoint that is resumed: of run.seed, data.*,
    optimizer.optimizer and parametrization.*."""

    def __post_init__(self) -> None:
        check_fields(self, "checkpoint.")

    @property
    def load_directory(self) -> str | None:
        """``load`` where it is a directory."""
        return None if self.load == "auto" else self.load


@dataclass
class LoggingSection:
    """Where numbers go besides metrics.jsonl."""

    tensorboard: bool = True
    wandb_project: str | None = None
    """Log to this Weights & Biases project as well."""
    progress_bar: bool = True
    """A live bar where the console is a terminal."""
    peak_tflops: Positive | None = None
    """What one GPU could do, in 10^12 FLOPs per second, of which MFU is told as a share; absent:
    dense bf16 products by its data sheet, if it is one that is known."""

    def __post_init__(self) -> None:
        check_fields(self, "logging.")
