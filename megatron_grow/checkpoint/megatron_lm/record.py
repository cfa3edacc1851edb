"""The record of a run of Megatron-LM, from its arguments."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from megatron_grow.checkpoint.megatron_lm.args import model_from_args, run_from_args
from megatron_grow.checkpoint.record import Record
from megatron_grow.inputs.errors import UserError


def record_of_megatron(args: Namespace, step: Any, optimizer_step: int, where: str) -> Record:
    """The record of a run of Megatron-LM.

    Args:
        args: its arguments, as a checkpoint holds them.
        step: its iteration; None or ``release`` for weights without a place in a run.
        optimizer_step: updates that the moments have seen.
        where: begins the message of an error.

    Raises:
        UserError: damaged, or of what cannot be built here; the message names the argument.
    """
    placed = step not in (None, "release")
    if placed and not (isinstance(step, int) and step >= 0):
        raise UserError(f"{where}: iteration={step!r} must be a step, from 0 on, or 'release'")
    try:
        model, config = model_from_args(args, where), run_from_args(args)
        samples = int(getattr(args, "consumed_train_samples", 0)) if placed else 0
        return Record(
            step=step if placed else 0,
            stage=0,
            consumed_samples=samples,
            consumed_tokens=samples * config["train"]["seq_length"],
            optimizer_step=optimizer_step,
            model=asdict(model),
            precision=config["train"]["precision"],
            config={**config, "model": asdict(model)},
            parallel=config["parallel"],
        )
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from None
    except Exception as error:  # arguments of any type may stand there
        raise UserError(f"{where}: its args are damaged: {error}") from None
