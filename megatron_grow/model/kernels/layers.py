"""Whole transformer layers, each one compiled function."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from types import MethodType
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_grow.model.kernels.compiling import compiled


def fuse(module: torch.nn.Module) -> None:
    """Let a layer be compiled, with the hooks that it has by now.

    While it has others (layers are measured, or new units masked) it is computed as it was.
    """
    if not isinstance(module, TransformerLayer):
        return
    _leave_out_warnings()
    inside = [each for each in module.modules() if each is not module]
    hooks = _hooks(inside)

    def forward(layer: TransformerLayer, *args: Any, **options: Any) -> Any:
        compute = _compiled if _hooks(inside) == hooks else _forward
        return compute(layer, *args, **options)

    module.forward = MethodType(forward, module)


@cache
def _leave_out_warnings() -> None:
    """In graphs: megatron-core warns at each matrix of a missing argument, in places that cannot
    give it.

    torch's ``ignore_logging_functions`` would do, but 2.11 then prints a traceback at each graph.
    """

    @torch.compiler.substitute_in_graph(warnings.warn, skip_signature_check=True)
    def warn(*message: Any, **options: Any) -> None:
        pass


def _hooks(modules: Sequence[torch.nn.Module]) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules)


def _forward(layer: TransformerLayer, *args: Any, **options: Any) -> Any:
    return type(layer).forward(layer, *args, **options)


_compiled = compiled(_forward)
