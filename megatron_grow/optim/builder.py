"""From the ``optimizer`` section of a run file to a megatron-core optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    DistributedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
    OptimizerConfig,
)

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim import multi_tensor
from megatron_grow.optim.algorithms.fused_rows import row_pattern
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.groups import ParameterGroup, parameter_groups
from megatron_grow.optim.multipliers import MultipliersOf
from megatron_grow.optim.state import init_state
from megatron_grow.state.boxes import Box
from megatron_grow.state.tensors import LogicalTensor


def build_optimizer(
    model_chunks: list[DistributedDataParallel],
    section: OptimizerSection,
    tensors: Mapping[str, LogicalTensor],
    shards: Mapping[torch.nn.Parameter, tuple[LogicalTensor, Box]],
    multipliers: MultipliersOf,
    *,
    precision: str,
    use_distributed_optimizer: bool,
) -> ChainedOptimizer:
    """Build the optimizer of this rank's model chunks, its state in place and all zero.

    There is one wrapper of megatron-core's for each rule that tensors are under. ``step()`` returns
    one gradient norm over all parameters, and clips by it, whichever rule each is under.

    Rules update *main parameters*: with bf16 fp32 copies of the model's. These have megatron-core's
    attributes, ``tensor_model_parallel`` and ``partition_dim``, and for rules that treat matrices
    whole two of ours: ``row_pattern`` where matrices are fused, as in
    :mod:`~megatron_grow.optim.algorithms.fused_rows`, and ``rows`` where some are padding: how many
    the whole has without it.

    Args:
        model_chunks: the model, wrapped.
        section: the update rule.
        tensors: of the whole model.
        shards: of each parameter, its tensor and the box of it that the parameter holds.
        multipliers: of the rate, decay and epsilon of each tensor.
        precision: ``fp32`` or ``bf16``; with bf16, main parameters and state are fp32.
        use_distributed_optimizer: shard the state over data-parallel ranks, as the chunks'
            gradient buffers do; for optimizers that allow it.
    """
    multi_tensor.install()
    config = _engine_config(section, precision, use_distributed_optimizer)
    params = [
        param for chunk in model_chunks for param in chunk.parameters() if param.requires_grad
    ]
    chained = []
    for experts, rule, groups in _wrapped_apart(section, tensors, multipliers):
        of_groups = [
            [param for param in params if shards[param][0].key in group.keys] for group in groups
        ]
        inner = rule.build(
            [
                {"params": of_group, **group.fields(rule, section)}
                for group, of_group in zip(groups, of_groups, strict=True)
            ],
            config.params_dtype,
        )
        wrapper = _wrap(inner, model_chunks, config, experts)
        if not use_distributed_optimizer:
            for group, of_group in zip(inner.param_groups, of_groups, strict=True):
                for main, param in zip(group["params"], of_group, strict=True):
                    _tell_rows(main, *shards[param])
        wrapper.rule = rule
        # megatron-core's own knows neither step nor momentum.
        wrapper.init_state_fn = partial(init_state, rule=rule)
        wrapper.init_state_fn(inner)
        chained.append(wrapper)
    return ChainedOptimizer(chained)


def _wrapped_apart(
    section: OptimizerSection, tensors: Mapping[str, LogicalTensor], multipliers: MultipliersOf
) -> Iterator[tuple[bool, Optimizer, list[ParameterGroup]]]:
    """Whether it is of experts that ranks share, the rule and the groups of each wrapper.

    Such experts have replicas, and gradient buffers, of their own.
    """
    shared = parallel_state.get_expert_model_parallel_world_size() > 1
    for experts in (False, True):
        for rule, groups in parameter_groups(section, tensors, multipliers):
            those = [
                ParameterGroup(group.overrides, keys)
                for group in groups
                if (
                    keys := [k for k in group.keys if (shared and tensors[k].of_experts) == experts]
                )
            ]
            if those:
                yield experts, rule, those


def _engine_config(section: OptimizerSection, precision: str, sharded: bool) -> OptimizerConfig:
    bf16 = precision == "bf16"
    return OptimizerConfig(
        lr=section.lr,
        min_lr=section.min_lr,
        weight_decay=section.weight_decay,
        clip_grad=section.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=sharded,
    )


def _wrap(
    inner: torch.optim.Optimizer,
    chunks: Sequence[DistributedDataParallel],
    config: OptimizerConfig,
    experts: bool,
) -> Any:
    """megatron-core's wrapper; it puts main parameters in the place of the model's."""
    wrapper: Any
    if config.use_distributed_optimizer:
        wrapper = _shard(inner, chunks, config, experts)
        group = parallel_state.get_intra_distributed_optimizer_instance_group()
    elif config.bf16:
        wrapper = Float16OptimizerWithFloat16Params(inner, config, None, None)
        group = _model_parallel_group(experts)
    else:
        wrapper = FP32Optimizer(inner, config, None)
        group = _model_parallel_group(experts)
    wrapper.grad_stats_parallel_group = group
    wrapper.tp_group = parallel_state.get_tensor_model_parallel_group()
    return wrapper


def _model_parallel_group(experts: bool) -> dist.ProcessGroup:
    """The ranks that hold all parts of the tensors of a wrapper."""
    if experts:
        return parallel_state.get_expert_tensor_model_pipeline_parallel_group()
    return parallel_state.get_model_parallel_group()


def _shard(
    inner: torch.optim.Optimizer,
    chunks: Sequence[DistributedDataParallel],
    config: OptimizerConfig,
    experts: bool,
) -> DistributedOptimizer:
    """megatron-core's distributed optimizer, around whichever rule.

    It takes Adam alone, for the sake of checkpoints that are not ours: one stands in until the
    ranges of parameters are dealt.
    """
    replicas = (
        parallel_state.get_expert_data_parallel_group(partial_expert_data_parallel=True)
        if experts
        else parallel_state.get_data_parallel_group(
            with_context_parallel=True, partial_data_parallel=True
        )
    )
    stand_in = torch.optim.AdamW([dict(group) for group in inner.param_groups])
    wrapper = DistributedOptimizer(
        stand_in,
        config,
        None,
        None,
        model_chunks=list(chunks),
        per_model_buffers={
            number: chunk.expert_parallel_buffers if experts else chunk.buffers
            for number, chunk in enumerate(chunks)
        },
        data_parallel_group=replicas,
        data_parallel_group_gloo=None,
        data_parallel_group_idx=_model_parallel_group(experts).rank(),
        distributed_optimizer_instance_id=0,
    )
    for group, dealt in zip(inner.param_groups, stand_in.param_groups, strict=True):
        group["params"] = dealt["params"]
    wrapper.optimizer = inner
    return wrapper


def _tell_rows(main: torch.nn.Parameter, tensor: LogicalTensor, box: Box) -> None:
    pattern, rows = row_pattern(tensor, box), tensor.axes[tensor.stacked]
    if pattern is not None:
        main.row_pattern = pattern  # type: ignore[attr-defined]
    if rows.multiple is not None:
        main.rows = rows.size  # type: ignore[attr-defined]
