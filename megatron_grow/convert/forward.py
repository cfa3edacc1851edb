"""Run two checkpoints on the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.side_files import of_source
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.convert.compare import less_precise
from megatron_grow.data.tokenizers.files import library_errors
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of
from megatron_grow.parallel.expected_warnings import ignore_expected_warnings
from megatron_grow.state.kinds import MAIN_PARAM

TOLERANCE = 1e-5
"""Largest difference of two logits, as a share of the largest logit, that is rounding alone: in
fp32, in which both are computed whatever their weights are stored in."""

TEXT = """\
A small model learns most of what a large one does in its first steps, and at a fraction of their \
cost. Grown at the right moment, with its weights and the state of its optimizer carried along, it \
goes on as if it had been large from the start."""


def compare_logits(a: Reader, b: Reader, text: str = TEXT) -> tuple[float, float, str]:
    """Logits of two checkpoints on one text, in fp32.

    Where one has its weights only in a less precise type, those of the other are rounded to it.

    Args:
        a: one; it runs in the library of its format, if there is one, else in megatron-core.
        b: the other.
        text: what both read.

    Returns:
        The largest difference as a share of the largest logit, NaN where there is one among them,
        the tolerance for it, and what was read, for people.
    """
    tokens, told = _tokens(a, b, text)
    sizes = {source.record.model_config.vocabulary for source in (a, b)}
    vocabulary = min(sizes)
    if len(sizes) > 1:
        told += f", for the {vocabulary:,} tokens that both know,"
    dtype = less_precise(_most_precise(a), _most_precise(b))
    x, y = (_logits(source, tokens, dtype)[..., :vocabulary] for source in (a, b))
    apart, scale = (x - y).abs().max(), torch.maximum(x.abs().max(), y.abs().max())
    return float(apart / scale) if apart else 0.0, TOLERANCE, told


def _most_precise(source: Reader) -> torch.dtype:
    found = {source.dtype(key, MAIN_PARAM) for key in source.tensors}
    return min(found, key=lambda dtype: torch.finfo(dtype).eps)


def _tokens(a: Reader, b: Reader, text: str) -> tuple[torch.Tensor, str]:
    """The text as (1, length) token ids: by a tokenizer that came with a model, or as bytes."""
    models = [source.record.model_config for source in (a, b)]
    length = min(architecture_of(model).longest_sequence(model) for model in models)
    vocabulary = min(model.vocabulary for model in models)
    ids, unit = list(text.encode()), "bytes as tokens"
    for source in (a, b):
        if stored := of_source(source).get("tokenizer.json"):
            from tokenizers import Tokenizer

            with library_errors(f"the tokenizer.json of {source.path} cannot be used"):
                ids, unit = Tokenizer.from_buffer(stored).encode(text).ids, "tokens"
            break
    if not ids:
        raise UserError("--text holds no token")
    ids = [token % vocabulary for token in ids[:length]]  # a tokenizer may know more than a model
    return torch.tensor([ids]), f"{len(ids)} {unit}"


def read_text(path: Path) -> str:
    """What a file of text holds.

    Raises:
        UserError: nothing, or it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--text {path} cannot be read: {reason}") from None
    if not text:
        raise UserError(f"--text {path} is empty")
    return text


@torch.no_grad()
def _logits(source: Reader, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, length, vocabulary), fp32, of the weights rounded to ``dtype``."""
    logits = source.logits(tokens, dtype)
    return _by_engine(source, tokens, dtype) if logits is None else logits


def _by_engine(source: Reader, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with engine():
        return by_engine(source, dtype)(tokens)


@contextmanager
def engine() -> Iterator[None]:
    """megatron-core on this process alone, where models can be built for the time of a block."""
    ignore_expected_warnings()
    # The converter starts without megatron-core, which takes seconds to import.
    from megatron_grow.parallel import process_groups

    leave = process_groups.tear_down if dist.is_initialized() else process_groups.stop
    process_groups.start()
    process_groups.set_up(ParallelConfig(), seed=1)
    try:
        yield
    finally:
        leave()


def by_engine(source: Reader, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a checkpoint's model makes of tokens in megatron-core, within :func:`engine`.

    Args:
        source: the checkpoint, all of whose weights are read.
        dtype: to which they are rounded; what follows is calculated in fp32.

    Returns:
        From ids, (samples, length), to logits, (samples, length, vocabulary), fp32, on the CPU.
    """
    from megatron_grow.live.check import check_model
    from megatron_grow.live.multipliers import apply_multipliers
    from megatron_grow.live.placement import placement, without_padding
    from megatron_grow.parallel import cpu

    model = source.record.model_config
    architecture = architecture_of(model)
    (chunk,) = architecture.build(model, ParallelConfig(), TrainSection(precision="fp32"))
    check_model([chunk], source.tensors, model.architecture)
    apply_multipliers(chunk, source.tensors, model)
    with torch.no_grad():
        for parameter, where in placement(chunk, source.tensors):
            values = source.read(where.key, MAIN_PARAM, where.box).to(dtype)
            without_padding(parameter.data, where.box).copy_(values)
    chunk.eval()

    @torch.no_grad()
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return architecture.logits(chunk, tokens.to(cpu.device())).cpu()

    return logits
