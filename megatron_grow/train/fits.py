"""Whether what a run asks for fits the machine, told before anything of that size is made."""

from __future__ import annotations

import psutil
import torch
from rich.filesize import decimal

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.config.timing import most_tokens
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.optimizers import optimizer_of

_BYTES_OF_SAMPLE = 10
"""Of the order in which the samples of several corpora take turns: which corpus, and its turn. One
corpus alone has an order for each epoch, however many there are."""


def check_fits(config: RunConfig, stages: list[Stage], world_size: int) -> None:
    """Refuse sizes that cannot be held, by bounds that a run surely exceeds.

    Raises:
        UserError: the field, what it needs, and what there is.
    """
    there = psutil.virtual_memory().total
    samples = {
        "train.train_iters": most_tokens(stages) // config.train.seq_length,
        "train.eval_iters": config.train.eval_iters * config.train.global_batch_size,
    }
    paths = (config.data.train_data_path, config.data.valid_data_path)
    blends = any(sum(isinstance(entry, str) for entry in path) > 1 for path in paths)
    for field, count in samples.items() if blends else ():
        _check(count * _BYTES_OF_SAMPLE, there, f"{field} asks for {count:,} samples, whose order")
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    for stage in stages:
        where, model, batch = f"stages[{stage.index}]", stage.model, stage.batch
        memory = estimate_memory(
            model,
            stage.parallel,
            world_size,
            precision=config.train.precision,
            optimizer=optimizer_of(config.optimizer),
        )
        _check(memory.total, there, f"{where}: the model and its optimizer state on one rank")
        tokens = batch.micro_batch_size * batch.seq_length // stage.parallel.context_parallel_size
        ranks = stage.parallel.tensor_model_parallel_size
        logits = tokens * model.padded_vocab_size(ranks) // ranks
        size = f"train.micro_batch_size={batch.micro_batch_size} x seq_length={batch.seq_length}"
        _check(4 * logits, there, f"{where}: the logits of one micro-batch of {size}")


def _check(needed: int, there: int, what: str) -> None:
    if needed > there:
        raise UserError(
            f"{what} would take {decimal(needed)} of memory; there are {decimal(there)}"
        )
