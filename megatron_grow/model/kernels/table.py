"""The kernels that a run file can ask for, and asking a model to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from megatron_grow.config.kernels import KernelsSection, whole_layers_need
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.kernels import (
    activation,
    attention,
    bias_dropout_add,
    compiling,
    cross_entropy,
    layers,
    norms,
    rotary,
    weight_gradients,
)


class Kernel(NamedTuple):
    """One field of :class:`.KernelsSection`."""

    fuse: Callable[[torch.nn.Module], None]
    """Called with every module of a model, before it is wrapped: has those that it is for use
    it."""
    lacks: Callable[[torch.device], str | None] = lambda device: None
    """What it needs on a device, and what is not there; None if nothing."""
    compiles: bool = False
    helps: Callable[[torch.device], bool] = lambda device: True
    """Whether it makes a step on that GPU faster."""
    unsuited: Callable[[ParallelConfig], str | None] = lambda parallel: None
    """What a stage's layout would need to have for it instead; None if nothing."""
    excludes: str | None = None
    """Another that is not used beside it."""


KERNELS = {
    "attention": Kernel(attention.fuse),
    "cross_entropy": Kernel(cross_entropy.fuse, compiling.lacks, True),
    "rotary": Kernel(rotary.fuse, compiling.lacks, True),
    "activation": Kernel(activation.fuse, compiling.lacks, True),
    "bias_dropout_add": Kernel(bias_dropout_add.fuse, compiling.lacks, True),
    "norms": Kernel(norms.fuse, compiling.lacks, True, norms.helps),
    "weight_gradients": Kernel(weight_gradients.fuse, weight_gradients.lacks),
    "layers": Kernel(
        layers.fuse,
        compiling.lacks,
        compiles=True,
        helps=lambda device: False,
        unsuited=whole_layers_need,
        excludes="weight_gradients",
    ),
}


class Chosen(NamedTuple):
    """What a stage uses."""

    used: tuple[str, ...]
    lacking: dict[str, str]
    """Those that would be used, were something here that is not."""

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled when it is first called."""
        return any(KERNELS[name].compiles for name in self.used)


def choose(section: KernelsSection, device: torch.device, parallel: ParallelConfig) -> Chosen:
    """What a stage uses on ``device``: what is asked for, and else, on a GPU, what helps there.

    Raises:
        UserError: it asks for what cannot be.
    """
    used, lacking = [], {}
    for name, kernel in KERNELS.items():
        asked = getattr(section, name)
        wanted = asked if asked is not None else device.type == "cuda" and kernel.helps(device)
        missing = kernel.lacks(device) if wanted else None
        if missing is not None and asked:
            raise UserError(
                f"kernels.{name}=true needs {missing}, which is not here; null or false"
            )
        missing = missing or (kernel.unsuited(parallel) if wanted else None)
        if missing is not None:
            lacking[name] = missing
        elif wanted:
            used.append(name)
    excluded = {KERNELS[name].excludes for name in used}
    return Chosen(tuple(name for name in used if name not in excluded), lacking)


def use_kernels(chunks: Iterable[torch.nn.Module], chosen: Chosen) -> None:
    """Have models use what is chosen; what others have compiled is forgotten."""
    if chosen.compiles:
        compiling.forget()
    for chunk in chunks:
        for module in chunk.modules():
            for name in chosen.used:
                KERNELS[name].fuse(module)
