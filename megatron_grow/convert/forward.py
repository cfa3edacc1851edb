"""Run two checkpoints on the same text."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_grow.checkpoint.source import Source
from megatron_grow.config.errors import UserError
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.convert.side_files import of_source
from megatron_grow.parallel.expected_warnings import ignore_expected_warnings
from megatron_grow.state.kinds import MAIN_PARAM

TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
"""Largest difference of two logits, as a share of the largest logit, that is rounding alone."""

TEXT = """\
A small model learns most of what a large one does in its first steps, and at a fraction of their \
cost. Grown at the right moment, with its weights and the state of its optimizer carried along, it \
goes on as if it had been large from the start."""


def compare_logits(a: Source, b: Source, text: Path | None) -> tuple[float, float, str]:
    """Logits of two checkpoints on one text.

    Args:
        a: one; Hugging Face models run in ``transformers``, all others in megatron-core.
        b: the other.
        text: a file to read; None: a sentence.

    Returns:
        The largest difference as a share of the largest logit, the tolerance for it, and what was
        read, for people.
    """
    tokens, told = _tokens(a, b, TEXT if text is None else text.read_text())
    vocabulary = min(source.record.model_config.vocab_size or 0 for source in (a, b))
    x, y = (_logits(source, tokens)[..., :vocabulary] for source in (a, b))
    precision = "bf16" if "bf16" in (a.record.precision, b.record.precision) else "fp32"
    return float((x - y).abs().max() / x.abs().max()), TOLERANCE[precision], told


def _tokens(a: Source, b: Source, text: str) -> tuple[torch.Tensor, str]:
    """The text as (1, length) token ids: by a tokenizer that came with a model, or as bytes."""
    models = [source.record.model_config for source in (a, b)]
    length = min(model.max_position_embeddings for model in models)
    vocabulary = min(model.vocab_size or 0 for model in models)
    for source in (a, b):
        if stored := of_source(source).get("tokenizer.json"):
            from tokenizers import Tokenizer

            ids = Tokenizer.from_buffer(stored).encode(text).ids
            return torch.tensor([ids[:length]]), f"{len(ids[:length])} tokens"
    ids = [byte % vocabulary for byte in text.encode()]
    return torch.tensor([ids[:length]]), f"{len(ids[:length])} bytes as tokens"


@torch.no_grad()
def _logits(source: Source, tokens: torch.Tensor) -> torch.Tensor:
    """(1, length, vocabulary), fp32."""
    if source.format == "Hugging Face":
        return _by_transformers(source, tokens)
    return _by_engine(source, tokens)


def _by_transformers(source: Source, tokens: torch.Tensor) -> torch.Tensor:
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise UserError(
            "--forward runs a Hugging Face model in transformers: pip install 'megatron_grow[hf]'"
        ) from None
    disable_progress_bar()
    dtype = torch.bfloat16 if source.record.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype).eval()
    return model(tokens).logits.float()


def _by_engine(source: Source, tokens: torch.Tensor) -> torch.Tensor:
    ignore_expected_warnings()
    # The converter starts without megatron-core, which takes seconds to import.
    from megatron_grow.model.builder import build_gpt
    from megatron_grow.parallel import cpu, process_groups
    from megatron_grow.state.live import placement, without_padding

    layout = ParallelConfig()
    train = TrainSection(precision="bf16" if source.record.precision == "bf16" else "fp32")
    process_groups.start()
    process_groups.set_up(layout, seed=1)
    (chunk,) = build_gpt(source.record.model_config, layout, train)
    for parameter, (key, box, _) in placement(chunk, source.tensors):
        without_padding(parameter.data, box).copy_(source.read(key, MAIN_PARAM, box))
    tokens = tokens.to(cpu.device())
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    logits = chunk.eval()(tokens, positions, None).float().cpu()
    process_groups.tear_down()
    return logits
