"""From the ``optimizer`` section of a run file to a megatron-core optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim.rules.fused_rows import row_pattern
from megatron_grow.optim.rules.muon import Muon
from megatron_grow.optim.rules.nsgd import NSGD
from megatron_grow.optim.state import init_state


def build_optimizer(
    model_chunks: list[DistributedDataParallel],
    section: OptimizerSection,
    *,
    precision: str,
    use_distributed_optimizer: bool,
) -> MegatronOptimizer:
    """Build the optimizer of this rank's model chunks, its state in place and all zero.

    - ``adam``: megatron-core's AdamW, all parameters.
    - ``sgd``: megatron-core's, with momentum. As in torch, its weight decay is *not* decoupled: it
      is added to the gradient.
    - ``muon``: the matrices of transformer layers under Muon at ``muon_lr``; embeddings, head and
      vectors under AdamW at ``lr``.
    - ``muon_nsgd``: all matrices under Muon, all else under normalised SGD, at one ``lr`` and with
      one momentum (``muon_momentum``); ``muon_embeddings=false`` moves embeddings and head to the
      latter.

    Weight decay leaves out biases and norms. ``step()`` returns one gradient norm over all
    parameters, and clips by it, whichever optimizer each is under.

    Args:
        model_chunks: the model, wrapped.
        section: the update rule.
        precision: ``fp32`` or ``bf16``; with bf16, main parameters and state are fp32 and
            Newton-Schulz runs in bf16, as in the original Muon.
        use_distributed_optimizer: shard the state over data-parallel ranks, as the chunks'
            gradient buffers do.
    """
    config = _engine_config(section, precision, use_distributed_optimizer)
    if section.optimizer in ("adam", "sgd"):
        optimizer = get_megatron_optimizer(config, model_chunks, use_gloo_process_groups=False)
        # What megatron-core's parameter scheduler would do; here a schedule sets only rates.
        for group in optimizer.param_groups:
            group["weight_decay"] = section.weight_decay * group["wd_mult"]
    else:
        optimizer = _build_muon(model_chunks, section, config)
    for wrapper in optimizer.chained_optimizers:
        if isinstance(wrapper.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            for group in wrapper.param_groups:
                group["fused"] = True  # several times faster than torch's loop, on CPU too
        init_state(wrapper.optimizer)
        wrapper.init_state_fn = init_state  # megatron-core's own knows neither step nor momentum
    return optimizer


def _engine_config(section: OptimizerSection, precision: str, sharded: bool) -> OptimizerConfig:
    bf16 = precision == "bf16"
    return OptimizerConfig(
        optimizer=section.optimizer,
        lr=section.lr,
        min_lr=section.min_lr,
        weight_decay=section.weight_decay,
        decoupled_weight_decay=True,
        adam_beta1=section.adam_beta1,
        adam_beta2=section.adam_beta2,
        adam_eps=section.adam_eps,
        sgd_momentum=section.sgd_momentum,
        clip_grad=section.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=sharded,
    )


def _build_muon(
    model_chunks: list[DistributedDataParallel], section: OptimizerSection, config: OptimizerConfig
) -> ChainedOptimizer:
    """Muon for some matrices, chained with AdamW or NSGD for everything else."""
    paired_with_nsgd = section.optimizer == "muon_nsgd"
    patterns: dict[torch.nn.Parameter, tuple[int, ...]] = {}
    others: list[torch.nn.Parameter] = []
    for chunk in model_chunks:
        for name, param in chunk.named_parameters():
            in_layer = "decoder.layers." in name
            if param.dim() == 2 and (in_layer or (paired_with_nsgd and section.muon_embeddings)):
                patterns[param] = row_pattern(name, param, chunk.config)
            else:
                others.append(param)

    muon_lr = section.lr
    if section.muon_lr is not None and not paired_with_nsgd:
        muon_lr = section.muon_lr
    tp_group = parallel_state.get_tensor_model_parallel_group()
    muon = Muon(
        [_group(list(patterns), muon_lr, section, wd_mult=1.0)],
        lr=muon_lr,
        momentum=section.muon_momentum,
        nesterov=section.muon_use_nesterov,
        num_ns_steps=section.muon_num_ns_steps,
        scale_mode=section.muon_scale_mode,
        dtype=config.params_dtype,
        tp_group=tp_group,
        dp_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    groups = [
        _group([p for p in others if p.dim() > 1], section.lr, section, wd_mult=1.0),
        _group([p for p in others if p.dim() <= 1], section.lr, section, wd_mult=0.0),
    ]
    other: torch.optim.Optimizer
    if paired_with_nsgd:
        other = NSGD(groups, lr=section.lr, momentum=section.muon_momentum, tp_group=tp_group)
    else:
        betas = (section.adam_beta1, section.adam_beta2)
        other = torch.optim.AdamW(groups, lr=section.lr, betas=betas, eps=section.adam_eps)

    wrap = _wrapper(config)
    chained = ChainedOptimizer([wrap(muon), wrap(other)])
    for param, pattern in patterns.items():
        # Under bf16 the wrapper has put fp32 copies in the place of the model's parameters.
        main_param = getattr(param, "main_param", param)
        main_param.row_pattern = pattern  # type: ignore[union-attr]
        main_param.rows = getattr(param, "rows", None)  # type: ignore[union-attr]
    return chained


def _group(
    params: list[torch.nn.Parameter], max_lr: float, section: OptimizerSection, wd_mult: float
) -> dict[str, Any]:
    """A parameter group with the fields that megatron-core's own have.

    It is made even where it is empty: checkpoints need the same groups on every rank.
    """
    return {
        "params": params,
        "max_lr": max_lr,
        "min_lr": section.min_lr,
        "weight_decay": section.weight_decay * wd_mult,
        "wd_mult": wd_mult,
        "lr_mult": 1.0,
        "is_expert_parallel": False,
        "is_decoupled_lr": False,
        "default_config": True,
    }


def _wrapper(config: OptimizerConfig) -> Callable[[torch.optim.Optimizer], MegatronOptimizer]:
    """megatron-core's wrapper for a plain torch optimizer in this precision."""
    if config.bf16:
        return lambda inner: Float16OptimizerWithFloat16Params(inner, config, None, init_state)
    return lambda inner: FP32Optimizer(inner, config, init_state)
