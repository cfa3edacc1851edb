"""What every architecture says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.ranges import check_fields
from megatron_grow.model.huggingface import Family
from megatron_grow.model.masks import MaskPoints
from megatron_grow.model.probes import Probe
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:  # the converter starts without megatron-core, which takes seconds to import
    import torch
    from torch.utils.data import Dataset

    from megatron_grow.config.run import RunConfig
    from megatron_grow.config.stages import Stage
    from megatron_grow.data.check import Split
    from megatron_grow.data.datasets import Datasets

Loss = Callable[[Any], Mapping[str, "torch.Tensor"]]
"""From what the last chunk of a model makes of a micro-batch to its losses and metrics, by name.

Each is a pair, (2,) in fp32: a sum, and how many it sums, such as tokens. Where context-parallel
ranks share the tokens of a sequence, their sums add up, and each has the count of all tokens.
"""


@dataclass(frozen=True)
class NoOptions:
    """Of samples that leave no choice."""


@dataclass(frozen=True)
class Architecture(ABC):
    """A kind of model: its tensors, how it is built, and what it trains on.

    The dataclass fields of one are what ``model.options`` of a run file can say. Importing one, and
    asking it for tensors, must not import megatron-core.
    """

    changing: ClassVar[frozenset[str]] = frozenset()
    """Options in which a model may differ from the one that it grows from."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """Options of other architectures that it cannot have, and why."""
    generates: ClassVar[bool] = True
    """Whether it goes on with a text, token by token, and must know which token ends one."""
    data_options: ClassVar[type] = NoOptions
    """A dataclass, whose fields are what ``data.options`` of a run file can say."""

    def __post_init__(self) -> None:
        check_fields(self)

    def changes_since(self, before: Self, where: str) -> dict[str, str]:
        """What its options change of the function of the model that it grows from, by option.

        Args:
            before: the same architecture with options that differ in those of :attr:`changing`.
            where: begins the message of an error.

        Raises:
            UserError: no growth leads from ``before`` to it.
        """
        return {}

    @abstractmethod
    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """All tensors of ``model``, by key.

        Args:
            model: the shape.
            target_depth: the depth that the run ends with, on which the init of residual outputs
                depends; the model's own if absent.
        """

    def check(self, stage: Stage, train: TrainSection, where: str) -> None:
        """Refuse what a stage asks for and such a model cannot do, before any is built.

        Args:
            stage: its shape, layout and batch.
            train: the precision, the implementation of layers, what is recomputed.
            where: begins the message of an error, for example ``stages[1]``.

        Raises:
            UserError: the field, its value, and what would do.
        """
        return

    @abstractmethod
    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """This rank's model chunks, in order, under the process groups of the current stage.

        An interleaved pipeline has several on each rank, every other layout one. Weights are *not*
        initialised: whoever builds a model fills it, by a map of fresh values or by a growth, so
        that values do not depend on the layout. Padding of the vocabulary alone is zero.
        """

    @abstractmethod
    def check_data(self, config: RunConfig, stages: list[Stage]) -> tuple[Split, Split | None]:
        """Open a run's corpora and check all that can be; cheap, and before any model is built.

        Args:
            config: the run, with its vocabulary.
            stages: what its stages resolve to.

        Returns:
            The training data, and the validation data of a run that has any.

        Raises:
            UserError: they cannot be trained on.
        """

    @abstractmethod
    def datasets(
        self, data: tuple[Split, Split | None], config: RunConfig, train_samples: int
    ) -> Datasets:
        """The samples of a run, on all ranks together.

        A sample has ``train.seq_length`` tokens. Its fields are tensors, of one size in all
        samples; those of a micro-batch are stacked. Sample number k is the same on every layout.

        Args:
            data: what :meth:`check_data` found.
            config: the run.
            train_samples: how many training samples it reads.

        Raises:
            UserError: on all ranks.
        """

    @abstractmethod
    def cut(self, samples: Dataset, parts: int) -> Dataset:
        """The same samples in the same order, each as so many shorter ones, for a stage."""

    def longest_sequence(self, model: ModelConfig) -> int:
        """Tokens of the longest sequence that a model can read."""
        return model.max_position_embeddings

    def hidden_length(
        self, model: ModelConfig, seq_length: int, data_options: Any, multiple: int = 1
    ) -> int:
        """Length of a sample between layers, and so of what pipeline stages send each other.

        Args:
            model: the shape.
            seq_length: tokens of a sample.
            data_options: what ``data.options`` says, an instance of :attr:`data_options`.
            multiple: of what it must be one, as is ``seq_length``, to be shared among ranks.
        """
        return seq_length

    def head_length(self, seq_length: int, data_options: Any) -> int:
        """Tokens of a sample of which the head makes logits: all, unless it says otherwise.

        Args:
            seq_length: tokens of a sample.
            data_options: what ``data.options`` says, an instance of :attr:`data_options`.
        """
        return seq_length

    def reads(self, *, first: bool, last: bool) -> bool:
        """Whether a chunk of a model needs its micro-batches: the first and the last by default.

        Args:
            first: whether it has the embeddings.
            last: whether it has the head.
        """
        return first or last

    @property
    def losses(self) -> tuple[str, ...]:
        """What it trains on, by name: the sum of their means."""
        return ("loss",)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it reports beside them, such as accuracies, by name."""
        return ()

    def counts(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """How much of each loss is in a micro-batch, such as its masked tokens; scalars.

        A mean is then over the global batch, however it is cut into micro-batches. Without this,
        it is the mean of their means: they are alike.

        Args:
            batch: the fields of samples, stacked, on the device that computes or on the CPU; the
                counts are where they are.
        """
        raise NotImplementedError

    @property
    def has_counts(self) -> bool:
        """Whether it says them."""
        return type(self).counts is not Architecture.counts

    @abstractmethod
    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        """What a chunk makes of a micro-batch, and what makes losses of that.

        The second is called with the first on the last pipeline stage alone.

        Args:
            chunk: one of those that :meth:`build` made.
            batch: the fields of samples, stacked, on the model's device; None unless
                :meth:`reads`.
        """

    @abstractmethod
    def logits(self, chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """What a model says of text, to compare two of them.

        Args:
            chunk: all of the model, on one rank.
            tokens: ids, (batch, length).

        Returns:
            (batch, length, vocabulary).
        """

    def example(self, tokens: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """A micro-batch that a text makes, for measurements that need no corpus.

        Args:
            tokens: ids, (batch, length + 1).

        Returns:
            The fields of samples of ``length`` tokens, stacked.
        """
        raise NotImplementedError

    @property
    def has_example(self) -> bool:
        """Whether it says one, and reads micro-batches as the class that says it does."""
        return self._says("example", "forward_step")

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        """Where units of a chunk can be masked, in layers of the local implementation."""
        raise NotImplementedError

    @property
    def has_mask_points(self) -> bool:
        """Whether it says them; training methods that need them are refused where not.

        A class with tensors of its own does not inherit those of the tensors that it adds to.
        """
        return self._says("mask_points", "tensors")

    def _says(self, name: str, about: str) -> bool:
        """Whether it has a method ``name`` of a class that has its method ``about``, or of one that
        derives from that."""
        says, has = (
            next(kind for kind in type(self).__mro__ if each in vars(kind))
            for each in (name, about)
        )
        said = getattr(type(self), name) is not getattr(Architecture, name)
        return said and issubclass(says, has)

    def probes(self, chunk: torch.nn.Module) -> Iterable[Probe]:
        """Where a chunk can be measured while it computes: all layers that are megatron-core's."""
        from megatron_grow.model.layers.probes import transformer_probes

        return transformer_probes(chunk)

    def layer_reads(self, model: ModelConfig, seq_length: int, data_options: Any) -> int:
        """Parameters of the layers, each as often as it is applied to a sample.

        That is once for each token, unless it says otherwise.

        Args:
            model: the shape.
            seq_length: tokens of a sample.
            data_options: what ``data.options`` says, an instance of :attr:`data_options`.
        """
        tensors = self.tensors(model, None).values()
        return seq_length * sum(prod(t.shape) for t in tensors if t.part == "blocks")

    @abstractmethod
    def model_flops_per_token(
        self, model: ModelConfig, seq_length: int, data_options: Any, *, causal: bool
    ) -> float:
        """Arithmetic that training on one token needs, for model FLOPs utilisation.

        Args:
            model: the shape.
            seq_length: tokens of a sample, which attend to each other.
            data_options: what ``data.options`` says, an instance of :attr:`data_options`.
            causal: count half of the attention square, what a causal kernel computes, instead of
                the published convention's whole.
        """

    def families(self) -> Mapping[str, Family]:
        """By ``model_type``, the families of Hugging Face that can hold such a model.

        In the order in which they are tried for a model that could be written as several.
        """
        return {}
