"""What Megatron-LM stores of an optimizer and its schedule beside the sharded tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.pickles import StoredTensor
from megatron_grow.checkpoint.record import Record
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.groups import parameter_groups
from megatron_grow.optim.optimizers import recorded_section
from megatron_grow.parametrization.table import joint_multipliers, recorded_parametrization

SHARDING = "distrib_optim_sharding_type"
"""Where a checkpoint says how its distributed optimizer is sharded."""
RESHARDABLE = "fully_reshardable"


def check_sharding(common: dict[str, Any], where: str) -> None:
    """Refuse an optimizer that is stored by rank instead of by tensor.

    Raises:
        UserError: it is; the message says what to do.
    """
    optimizer = common.get("optimizer") or {}
    told = (common.get("content_metadata") or {}).get(SHARDING)
    sharding = told or optimizer.get("param_state_sharding_type", RESHARDABLE)
    if sharding != RESHARDABLE:
        raise UserError(
            f"{where}: its optimizer is stored as {sharding}, for its own layout alone; resume it "
            "once in Megatron-LM with --dist-ckpt-optim-fully-reshardable and save, or save its "
            "weights alone with --no-save-optim"
        )


def optimizer_step(archive: Archive, common: dict[str, Any]) -> int:
    """Updates that the stored moments have seen; 0 without an optimizer."""
    for state in _parts(common.get("optimizer") or {}):
        step = state.get("state", {}).get("common_step")
        groups = state.get("param_groups", [])
        found = [step, *(group.get("step") for group in groups)]
        for value in found:
            if isinstance(value, StoredTensor):
                value = archive.scalar(value)
            if value:
                return int(value)
    return 0


def _parts(optimizer: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """Where the state of each chained optimizer, or of the only one, has its groups."""
    if "param_groups" in optimizer:
        yield optimizer
    for name, value in optimizer.items():
        if isinstance(name, int) or name == "optimizer":
            yield from _parts(value)


def optimizer_groups(record: Record) -> list[dict[str, Any]]:
    """The parameter groups as Megatron-LM stores them; none where it cannot go on from them.

    It may not have the optimizer, or take one group for another: it tells groups apart by their
    multipliers of rate and weight decay, not of epsilon.
    """
    section, tensors = recorded_section(record.config), logical_tensors(record.model_config)
    try:
        parametrization = recorded_parametrization(record.config, record.model_config)
        multipliers = joint_multipliers(parametrization, section, tensors)
        rules = parameter_groups(section, tensors, multipliers)
    except UserError:
        return []  # by an import path that is not here; its state is copied all the same
    (rule, of_rule), *others = rules
    stored = rule.megatron_lm_group(record.optimizer_step)
    if stored is None or others:
        return []
    groups = [{**stored, **group.fields(rule, section)} for group in of_rule]
    known_by = {(group["wd_mult"], group["lr_mult"]) for group in groups}
    return groups if len(known_by) == len(groups) else []


def optimizer_state(groups: list[dict[str, Any]], step: int, *, mixed: bool) -> dict[str, Any]:
    """The common state of an optimizer.

    Args:
        groups: as :func:`optimizer_groups` makes them.
        step: updates done.
        mixed: for its distributed optimizer over fp32 main parameters; else for its plain fp32 one.
    """
    state: dict[str, Any] = {"param_groups": groups}
    if mixed:
        return {"optimizer": state, "param_state_sharding_type": RESHARDABLE}
    return {**state, "state": {"common_step": step}}


def scheduler_state(args: dict[str, Any], step: int) -> dict[str, Any]:
    """The state of Megatron-LM's schedule, which counts in samples.

    Args:
        args: its arguments.
        step: updates done.
    """
    batch = args["global_batch_size"]
    return {
        "max_lr": args["lr"],
        "min_lr": args["min_lr"],
        "lr_warmup_steps": args["lr_warmup_iters"] * batch,
        "num_steps": step * batch,
        "lr_decay_style": args["lr_decay_style"],
        "lr_decay_steps": args["train_iters"] * batch,
        "start_wd": args["weight_decay"],
        "end_wd": args["weight_decay"],
        "wd_incr_style": "constant",
        "wd_incr_steps": args["train_iters"] * batch,
    }
