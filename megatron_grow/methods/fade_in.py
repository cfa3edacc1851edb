"""New units that fade in: masked structural growth (MSG, Yao et al. 2023, arXiv 2305.02869).

After a growth the new units of an axis are multiplied by a mask that rises from 0 to 1 over some
steps, so that the function is preserved whatever the new weights are. Nothing of it is in the
model's code: hooks do it, and are gone when the mask is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from megatron.core import parallel_state
from torch.utils.hooks import RemovableHandle

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, check_fields
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.layers.norms import Norm
from megatron_grow.parallel import cpu

_MASKED = {"layer", "hidden", "kv_group", "query_head", "ffn"}
"""Axes that have masks."""


@dataclass
class FadeIn(TrainingMethod):
    """Mask new units; ``grow.mask_iters: N`` is short for ``{name: fade_in, iters: N}``."""

    masks_new_units: ClassVar[bool] = True

    iters: Count
    """Steps until they take part as all others do."""

    def __post_init__(self) -> None:
        check_fields(self)
        self._masks: Masks | None = None

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Refuse a growth without new units, and layers that hooks cannot mask."""
        if not plan.new_units:
            raise UserError(f"{where} masks random new units; no operator here makes any")
        if unknown := sorted(plan.new_units.keys() - _MASKED):
            raise UserError(f"{where} cannot mask new units of {', '.join(unknown)}")
        if not architecture_of(stage.model).has_mask_points:
            raise UserError(
                f"{where}: model.architecture={stage.model.architecture} does not say where units "
                "can be masked (mask_points)"
            )
        if run.train.transformer_impl != "local":
            raise UserError(
                f"{where} needs train.transformer_impl: local; "
                "Transformer Engine's fused norms cannot be masked"
            )

    def on_stage_start(self, ctx: Context) -> None:
        """Mask, unless a resume comes when the masks are gone."""
        if self._strength(ctx) < 1.0:
            self._masks = Masks(ctx.live.chunks, ctx.stage.model, ctx.plan.new_units)
            self._masks.set(self._strength(ctx))

    def before_step(self, ctx: Context) -> None:
        """Raise the masks."""
        if self._masks is None:
            return
        if self._strength(ctx) < 1.0:
            self._masks.set(self._strength(ctx))
        else:
            self.on_stage_end(ctx)

    def on_stage_end(self, ctx: Context) -> None:
        """Leave a plain model."""
        if self._masks is not None:
            self._masks.remove()
            self._masks = None

    def _strength(self, ctx: Context) -> float:
        """How far new units have faded in."""
        return (ctx.step - ctx.stage.first_step) / self.iters


class Masks:
    """The masks of one stage, on the chunks of this rank."""

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        model: ModelConfig,
        new: Mapping[str, Sequence[bool]],
    ) -> None:
        """Hook into ``chunks``; :meth:`set` says how far along the new units are.

        Args:
            chunks: this rank's, of the local layer specification.
            model: their shape.
            new: for each axis that has grown, which of its units are new.
        """
        self._new = {axis: torch.tensor(flags, device=cpu.device()) for axis, flags in new.items()}
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._masks: dict[str, torch.Tensor] = {}
        self.set(0.0)
        for chunk in chunks:
            self._hook(chunk, model)

    def set(self, strength: float) -> None:
        """Multiply new units by ``strength`` from now on."""
        for axis, new in self._new.items():
            self._masks[axis] = torch.where(new, strength, 1.0)

    def remove(self) -> None:
        """Leave a plain model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # Where the masks act

    def _hook(self, chunk: torch.nn.Module, model: ModelConfig) -> None:
        points = architecture_of(model).mask_points(chunk)
        if "hidden" in self._new:
            for module in points.streams:
                self._after(module, self._mask_stream)
            for module in points.norms:
                self._replace_norm(module)
        for module, layer in points.branches:
            self._after(module, partial(self._mask_branch, layer=layer))
        if "layer" in self._new:
            for module, layer in points.sums:
                self._after(module, partial(self._mask_sum, layer=layer))
        for module in points.contexts:
            self._before(module, self._mask_heads)
        for module in points.inner:
            self._before(module, self._mask_ffn)

    def _after(self, module: torch.nn.Module, change: Callable[[Any], Any]) -> None:
        def hook(_: torch.nn.Module, __: tuple, output: Any) -> Any:
            return change(output)

        self._handles.append(module.register_forward_hook(hook))

    def _before(self, module: torch.nn.Module, change: Callable[[Any], Any]) -> None:
        def hook(_: torch.nn.Module, inputs: tuple) -> tuple:
            return (change(inputs[0]), *inputs[1:])

        self._handles.append(module.register_forward_pre_hook(hook))

    def _replace_norm(self, norm: torch.nn.Module) -> None:
        def hook(module: Norm, inputs: tuple, _: torch.Tensor) -> torch.Tensor:
            return self._norm(module, inputs[0])

        self._handles.append(norm.register_forward_hook(hook))

    # What they do there

    def _of(self, axis: str, like: torch.Tensor) -> torch.Tensor:
        return self._masks[axis].to(like.dtype)

    def _mask_stream(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden)."""
        return x * self._of("hidden", x)

    def _mask_branch(self, output: Any, layer: int) -> Any:
        """What a layer adds to the residual stream: a value, perhaps with its bias apart."""
        factor = torch.ones((), device=cpu.device())
        if "layer" in self._masks:
            factor = factor * self._masks["layer"][layer]
        if "hidden" in self._masks:
            factor = factor * self._masks["hidden"]
        if isinstance(output, tuple):
            return tuple(None if part is None else part * factor.to(part.dtype) for part in output)
        return output * factor.to(output.dtype)

    def _mask_sum(self, add: Callable[..., torch.Tensor], layer: int) -> Callable[..., Any]:
        """What a layer makes of the residual stream, as far as it is there; then it stays."""

        def mixed(branch: Any, residual: torch.Tensor, drop: float) -> torch.Tensor:
            there = self._masks["layer"][layer].to(residual.dtype)
            return residual.lerp(add(branch, residual, drop), there)

        return mixed

    def _mask_heads(self, context: torch.Tensor) -> torch.Tensor:
        """(..., heads of this rank x head size), group by group."""
        model = self._model
        per_group = model.num_attention_heads // model.query_groups
        mask = torch.ones(model.query_groups, per_group, device=context.device)
        if "kv_group" in self._masks:
            mask = mask * self._masks["kv_group"][:, None]
        if "query_head" in self._masks:
            mask = mask * self._masks["query_head"]
        mask = _mine(mask).flatten().repeat_interleave(model.head_dim)
        return context * mask.to(context.dtype)

    def _mask_ffn(self, inner: torch.Tensor) -> torch.Tensor:
        """(..., feed-forward units of this rank)."""
        if "ffn" not in self._masks:
            return inner
        return inner * _mine(self._of("ffn", inner))

    def _norm(self, norm: Norm, x: torch.Tensor) -> torch.Tensor:
        """A norm whose statistics count every unit as far as it is there."""
        mask = self._masks["hidden"]
        count, values = mask.sum(), x.float()
        if norm.bias is None:
            scale = (values.square().sum(-1, keepdim=True) / count + norm.eps).rsqrt()
            return (values * scale).to(x.dtype) * norm.weight
        centred = values - values.sum(-1, keepdim=True) / count
        variance = (mask * centred.square()).sum(-1, keepdim=True) / count
        normed = centred * (variance + norm.eps).rsqrt() * norm.weight.float() + norm.bias.float()
        return (normed * mask).to(x.dtype)


def _mine(mask: torch.Tensor) -> torch.Tensor:
    """This tensor-parallel rank's part."""
    parts = parallel_state.get_tensor_model_parallel_world_size()
    return mask.chunk(parts)[parallel_state.get_tensor_model_parallel_rank()]
