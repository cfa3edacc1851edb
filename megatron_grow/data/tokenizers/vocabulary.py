"""The model's vocabulary, from the tokenizer."""

from __future__ import annotations

from dataclasses import replace

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import DataSection
from megatron_grow.data.tokenizers.load import load_tokenizer
from megatron_grow.inputs.errors import UserError


def with_vocabulary(model: ModelConfig, data: DataSection) -> ModelConfig:
    """``model`` with its vocabulary size; the tokenizer's where the run file leaves it out.

    Raises:
        UserError: a tokenizer that does not load, or has more entries than the model.
    """
    tokenizer = load_tokenizer(data.tokenizer, data.vocab_file, data.merge_file)
    if model.vocab_size is None:
        return replace(model, vocab_size=tokenizer.vocab_size)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"model.vocab_size={model.vocab_size} is smaller than the {tokenizer.vocab_size} "
            f"entries of the tokenizer {data.tokenizer}; leave it out or raise it"
        )
    return model
