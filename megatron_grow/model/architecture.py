"""What every architecture says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.huggingface import Family
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:  # the converter starts without megatron-core, which takes seconds to import
    import torch


class Architecture(ABC):
    """A kind of model: its tensors, and how it is built.

    Importing one, and asking it for tensors, must not import megatron-core.
    """

    @abstractmethod
    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """All tensors of ``model``, by key.

        Args:
            model: the shape.
            target_depth: the depth that the run ends with, on which the init of residual outputs
                depends; the model's own if absent.
        """

    @abstractmethod
    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """This rank's model chunks, in order, under the process groups of the current stage.

        An interleaved pipeline has several on each rank, every other layout one. Weights are *not*
        initialised: whoever builds a model fills it, by a map of fresh values or by a growth, so
        that values do not depend on the layout. Padding of the vocabulary alone is zero.
        """

    def families(self) -> Mapping[str, Family]:
        """By ``model_type``, the families of Hugging Face that can hold such a model.

        In the order in which they are tried for a model that could be written as several.
        """
        return {}
