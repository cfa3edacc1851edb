"""How the layers of a model are cut into the chunks of a rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_grow.config.sections import TrainSection
from megatron_grow.model import engine_names
from megatron_grow.parallel import cpu


def build_chunks(
    config: TransformerConfig,
    train: TrainSection,
    layers: Sequence[ModuleSpec],
    norm: type[torch.nn.Module],
    build: Callable[[TransformerBlockSubmodules, int], torch.nn.Module],
) -> list[torch.nn.Module]:
    """This rank's chunks of a model, in order, under the process groups of the current stage.

    Args:
        config: of the model.
        train: its precision.
        layers: the specification of each layer of the model.
        norm: a final norm, for the last chunk.
        build: makes a chunk of its layers and of its number on this rank.
    """
    engine_names.define()
    chunks = []
    for number in range(config.virtual_pipeline_model_parallel_size or 1):
        first = get_transformer_layer_offset(config, vp_stage=number)
        count = get_num_layers_to_build(config, vp_stage=number)
        block = TransformerBlockSubmodules(list(layers[first : first + count]), layer_norm=norm)
        # megatron-core makes what ranks do not share, such as learned positions, on the CPU.
        chunk = build(block, number).to(cpu.device())
        chunks.append(Float16Module(config, chunk) if train.precision == "bf16" else chunk)
    return chunks
