"""The common state of a checkpoint, as Megatron-LM needs it to go on from there."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from megatron_grow.checkpoint.megatron_lm.args import model_to_args, parallel_to_args, run_to_args
from megatron_grow.checkpoint.megatron_lm.optimizer import (
    RESHARDABLE,
    SHARDING,
    optimizer_groups,
    optimizer_state,
    scheduler_state,
)
from megatron_grow.checkpoint.record import Record
from megatron_grow.config.parallel import ParallelConfig

WRITER = "megatron_grow"
"""Marks the common state of a checkpoint that has a record."""
VERSION = 3.0
"""Of Megatron-LM's checkpoints: rows of queries, keys and values interleave as they do here."""

_TOKENIZERS = {"gpt2": "GPT2BPETokenizer", "bytes": "NullTokenizer"}


def megatron_args(
    record: Record, parallel: ParallelConfig, *, ckpt_format: str, with_optimizer: bool
) -> dict[str, Any]:
    """All arguments that a checkpoint for the layout ``parallel`` can answer for."""
    config = record.config
    data = config.get("data", {})
    tokenizer = data.get("tokenizer")
    args = run_to_args(config)
    if tokenizer is not None:
        args |= {
            "tokenizer_type": _TOKENIZERS.get(tokenizer, "HuggingFaceTokenizer"),
            "tokenizer_model": None if tokenizer in _TOKENIZERS else tokenizer,
        }
    shape = model_to_args(record.model_config, parallel.tensor_model_parallel_size)
    if args.get("tokenizer_type") == "NullTokenizer":
        shape["vocab_size"] -= 1  # it adds an end of document
    return {
        **args,
        **parallel_to_args(parallel),
        **shape,
        "iteration": record.step,
        "consumed_train_samples": record.consumed_samples,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
        "ckpt_format": ckpt_format,
        "no_save_optim": not with_optimizer,
        # Nothing here depends on a generator's state; Megatron-LM then asks for none.
        "no_save_rng": True,
    }


def common_state(record: Record, *, with_optimizer: bool) -> dict[str, Any]:
    """What ``common.pt`` of a ``torch_dist`` checkpoint holds: plain values alone.

    Args:
        record: where training stands.
        with_optimizer: optimizer state is stored. Megatron-LM is told so where it can go on from
            it.
    """
    # A schedule is made from the whole run file; not every writer of records has one.
    known = record.config.keys() >= {"optimizer", "train", "schedule"}
    groups = optimizer_groups(record) if with_optimizer and known else []
    parallel = ParallelConfig(**record.parallel)
    args = megatron_args(record, parallel, ckpt_format="torch_dist", with_optimizer=bool(groups))
    # What it finds its state of fp32 main parameters by.
    args["use_distributed_optimizer"] = mixed = record.precision == "bf16"
    content: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if mixed:
        content |= {SHARDING: RESHARDABLE, f"distrib_optim_{RESHARDABLE}_mem_efficient": False}
    state = {
        "args": Namespace(**args),
        "checkpoint_version": VERSION,
        "iteration": record.step,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": content,
        WRITER: True,
    }
    if groups:
        state["optimizer"] = optimizer_state(groups, record.optimizer_step, mixed=mixed)
        state["opt_param_scheduler"] = scheduler_state(args, record.step)
    return state


def legacy_state(record: Record, parallel: ParallelConfig) -> dict[str, Any]:
    """What each file of a legacy checkpoint of weights holds beside them."""
    args = megatron_args(record, parallel, ckpt_format="torch", with_optimizer=False)
    return {
        "args": Namespace(**args),
        "checkpoint_version": VERSION,
        "iteration": record.step,
        "num_floating_point_operations_so_far": 0,
    }
