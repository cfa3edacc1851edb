"""``torch_dist`` checkpoints as stock Megatron-LM writes them, by megatron-core's own engine.

The state is put together as its ``generate_state_dict`` and ``save_checkpoint`` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    ParamKey,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.rerun_state_machine import RerunDiagnostic, RerunMode, RerunState
from megatron.core.transformer.module import Float16Module

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.optim.state import init_state
from tests.checkpoint.stock.engine import writing_in_process
from tests.checkpoint.stock.models import BATCH, STEP, build, painted, stock_args, within

ADAM = optimizer_of(OptimizerSection())

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "distributed": {"bf16": True, "use_distributed_optimizer": True},
    "dp_reshardable": {"bf16": True, "use_distributed_optimizer": True},
}
"""Arguments that decide which optimizer Megatron-LM builds, and how it is stored."""


def content_metadata(name: str) -> dict[str, Any]:
    """What Megatron-LM says about how the state is stored."""
    content: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if name == "distributed":
        content["distrib_optim_sharding_type"] = "fully_reshardable"
        content["distrib_optim_fully_reshardable_mem_efficient"] = False
    if name == "dp_reshardable":
        content["distrib_optim_sharding_type"] = "dp_reshardable"
    return content


def build_optimizer(
    model: ModelConfig,
    parallel: ParallelConfig,
    name: str,
    overrides: dict[ParamKey, Any] | None = None,
) -> tuple[list[torch.nn.Module], MegatronOptimizer, OptimizerParamScheduler]:
    """Model, optimizer with room for its moments, and schedule, as Megatron-LM builds them."""
    args = stock_args(model, parallel, **OPTIMIZERS[name])
    chunks: list[Any] = build(model, parallel)
    config = chunks[0].config
    if args.bf16:
        chunks = [Float16Module(_in_bf16(config), chunk) for chunk in chunks]
    ddp = DistributedDataParallelConfig(
        use_distributed_optimizer=args.use_distributed_optimizer, grad_reduce_in_fp32=args.bf16
    )
    wrapped = [DistributedDataParallel(config, ddp, chunk) for chunk in chunks]
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=args.lr,
        min_lr=args.min_lr,
        weight_decay=args.weight_decay,
        adam_beta2=args.adam_beta2,
        bf16=args.bf16,
        params_dtype=torch.bfloat16 if args.bf16 else torch.float32,
        use_distributed_optimizer=args.use_distributed_optimizer,
    )
    if overrides is not None:  # given ones replace those that spare biases and norms from decay
        overrides = {**get_standard_config_overrides(optimizer_config), **overrides}
    optimizer = get_megatron_optimizer(
        optimizer_config, wrapped, overrides, use_gloo_process_groups=False
    )
    for wrapper in optimizer.chained_optimizers:
        wrapper.init_state_fn = partial(init_state, rule=ADAM)
        wrapper.init_state_fn(wrapper.optimizer)
    schedule = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=args.lr_warmup_iters * BATCH,
        lr_decay_steps=args.train_iters * BATCH,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.weight_decay,
        end_wd=args.weight_decay,
        wd_incr_steps=args.train_iters * BATCH,
        wd_incr_style="constant",
    )
    return wrapped, optimizer, schedule


def _in_bf16(config: Any) -> Any:
    config.bf16, config.params_dtype = True, torch.bfloat16
    return config


def state_of(
    wrapped: list[torch.nn.Module],
    optimizer: MegatronOptimizer,
    name: str,
    *,
    is_loading: bool = False,
) -> dict[str, Any]:
    """The sharded state of model and optimizer."""
    metadata = {
        **content_metadata(name),
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    state: dict[str, Any] = {}
    for number, chunk in enumerate(wrapped):
        entry = f"model{number}" if len(wrapped) > 1 else "model"
        state[entry] = chunk.module.sharded_state_dict(metadata=metadata)
    state["optimizer"] = optimizer.sharded_state_dict(state, is_loading, metadata=metadata)
    return state


def sharded(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    """Every sharded tensor of a state, and memory of it that can be written to."""
    for entry in nested_values(state):
        if isinstance(entry, ShardedTensorFactory):
            yield from nested_values(entry.build())
        elif isinstance(entry, ShardedTensor):
            yield entry


def save(
    model: ModelConfig, parallel: ParallelConfig, name: str, directory: Path, **more: Any
) -> None:
    """On a rank: a checkpoint whose tensors are all painted."""
    wrapped, optimizer, schedule = build_optimizer(model, parallel, name)
    schedule.step(STEP * BATCH)
    for wrapper in optimizer.chained_optimizers:
        for held in wrapper.optimizer.state.values():
            held["step"].fill_(STEP)
    state = state_of(wrapped, optimizer, name)
    for shard in sharded(state):
        whole = painted(shard.key, shard.global_shape)
        shard.data.detach().copy_(whole[within(shard)].view_as(shard.data))
    state |= {
        "args": stock_args(model, parallel, **OPTIMIZERS[name] | more),
        "checkpoint_version": 3.0,
        "iteration": STEP,
        "opt_param_scheduler": schedule.state_dict(),
        "num_floating_point_operations_so_far": 0,
        "rerun_state_machine": {
            "mode": RerunMode.DISABLED,
            "state": RerunState.NOT_RUNNING_YET,
            "diagnostic": RerunDiagnostic.CORRECT_RESULT,
        },
    }
    directory.mkdir(parents=True, exist_ok=True)
    with writing_in_process():
        dist_checkpointing.save(state, str(directory), content_metadata=content_metadata(name))
