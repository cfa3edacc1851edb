"""A BERT of megatron-core's parts, whose head reads no more tokens than it must."""

from __future__ import annotations

import copy

import torch
from megatron.core.models.bert.pooler import Pooler
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from megatron.core.transformer.utils import get_linear_layer

from megatron_grow.model.bert.lengths import pooled_length
from megatron_grow.model.bert.pooling import places_of
from megatron_grow.model.layers.norms import Norm
from megatron_grow.model.layers.post_norm import normalise_embeddings
from megatron_grow.model.layers.vocabulary import PaddedVocabulary

Output = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Of the last chunk: see :meth:`BertModule.forward`."""


class BertModule(LanguageModule):
    """What megatron-core's ``BertModel`` is, under the same keys of a checkpoint.

    That one reads all tokens in its head, makes losses of all, and has norms that cannot be chosen.
    Here the heads are the same on all tensor-parallel ranks, sequence parallelism or not, but for
    the vocabulary, which they share.
    """

    def __init__(
        self,
        config: TransformerConfig,
        block: TransformerBlockSubmodules,
        *,
        vocab_size: int,
        padded_vocab_size: int,
        max_sequence_length: int,
        first_position: int,
        token_types: int,
        post_norm: bool,
        sentence_head: bool,
        pool_size: int,
        pre_process: bool,
        post_process: bool,
        share_embeddings_and_output_weights: bool,
        vp_stage: int,
    ) -> None:
        """A chunk: ``block``, before it the embeddings or behind it the heads, or neither.

        Args:
            config: of the model.
            block: its layers.
            vocab_size: tokens; rows of the embedding behind them are padding.
            padded_vocab_size: tokens and padding, on all tensor-parallel ranks together.
            max_sequence_length: rows of the table of positions.
            first_position: row of it that the first token has.
            token_types: kinds of tokens; 0: they are not told apart.
            post_norm: whether norms follow the sums of the residual stream.
            sentence_head: whether there is a head over pairs of sentences.
            pool_size: tokens that share a place behind the model's first layer; 1: none do.
            pre_process: whether it begins with the embeddings.
            post_process: whether it ends with the heads.
            share_embeddings_and_output_weights: whether the head is tied.
            vp_stage: number of the chunk on its rank.
        """
        super().__init__(config=config)
        self.pre_process, self.post_process = pre_process, post_process
        self.share_embeddings_and_output_weights = share_embeddings_and_output_weights
        self.vp_stage = vp_stage
        self.model_type = ModelType.encoder_or_decoder
        self.first_position, self.pool_size = first_position, pool_size
        if pre_process:
            self.embedding = LanguageModelEmbedding(
                config, padded_vocab_size, max_sequence_length, num_tokentypes=token_types
            )
            if post_norm:
                normalise_embeddings(self.embedding, config)
        self.encoder = TransformerBlock(
            config,
            block,
            post_layer_norm=not post_norm,
            pre_process=pre_process,
            post_process=post_process,
            vp_stage=vp_stage,
        )
        if post_process:
            # The heads read gathered tokens, whose gradients are whole on every rank.
            gathered = copy.copy(config)
            gathered.sequence_parallel = False
            self.lm_head = MaskedTokenHead(gathered)
            self.output_layer = ColumnParallelLinear(
                config.hidden_size,
                padded_vocab_size,
                config=gathered,
                init_method=config.init_method,
                gather_output=False,
                skip_weight_param_allocation=pre_process and share_embeddings_and_output_weights,
            )
            if sentence_head:
                self.pooler = Pooler(config.hidden_size, config.init_method, gathered)
                self.binary_head = get_linear_layer(config.hidden_size, 2, config.init_method)
        self.sentence_head = sentence_head
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()
        self._vocabulary = PaddedVocabulary(vocab_size, padded_vocab_size, self.tp_group)
        self._vocabulary.clear_padding(self)

    def set_input_tensor(self, input_tensor: list[torch.Tensor | None]) -> None:
        """Give it the output of the chunk before; megatron-core's schedules call it."""
        self.encoder.set_input_tensor(input_tensor[0])

    def forward(
        self,
        tokens: torch.Tensor,
        token_types: torch.Tensor,
        padding_mask: torch.Tensor,
        masked_positions: torch.Tensor | None = None,
        masked_labels: torch.Tensor | None = None,
    ) -> torch.Tensor | Output:
        """Run this chunk.

        Args:
            tokens: (batch, sequence).
            token_types: (batch, sequence); a model without does not read them.
            padding_mask: (batch, sequence) bool, True where tokens are padding.
            masked_positions: (batch, masked tokens), those that the head reads; None: all.
            masked_labels: (batch, masked tokens), what they are; None: for their logits.

        Returns:
            Of the last chunk, the losses of masked tokens, (masked tokens, batch) in fp32, and
            whether the likeliest token is the right one; or, without labels, their logits, (masked
            tokens, batch, vocabulary of this rank), and None. Then the logits of the two sentence
            classes, (batch, 2), where there is such a head. Of any other chunk, the hidden states.
        """
        hidden = self._embedded(tokens, token_types) if self.pre_process else None
        places = None
        if self.pool_size > 1:
            places = self._places(padding_mask, masked_positions)
            padding_mask = ~places.any(2)
            if masked_positions is not None:  # have the places that follow the first token's
                masked_positions = torch.arange(
                    1, 1 + masked_positions.shape[1], device=tokens.device
                ).expand_as(masked_positions)
        hidden = self.encoder(
            hidden_states=hidden,
            attention_mask=padding_mask[:, None, None],
            context_mask=places,
        )
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        sentence = self.binary_head(self.pooler(hidden)) if self.sentence_head else None
        if masked_positions is not None:
            index = masked_positions.t().unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            hidden = hidden.gather(0, index)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else None
        logits, _ = self.output_layer(self.lm_head(hidden), weight=weight)
        if masked_labels is None:
            return self._vocabulary.without_padding(logits), None, sentence
        return *self._vocabulary.losses(logits, masked_labels.t()), sentence

    def _places(
        self, padding_mask: torch.Tensor, masked_positions: torch.Tensor | None
    ) -> torch.Tensor:
        """Which tokens each place holds; where the head reads all tokens, each has its own."""
        if masked_positions is None:
            masked_positions = torch.zeros_like(padding_mask[:, :0], dtype=torch.long)
            return places_of(padding_mask, masked_positions, 1, padding_mask.shape[1])
        ranks = self.tp_group.size() if self.config.sequence_parallel else 1
        length = pooled_length(
            padding_mask.shape[1], masked_positions.shape[1], self.pool_size, ranks
        )
        return places_of(padding_mask, masked_positions, self.pool_size, length)

    def _embedded(self, tokens: torch.Tensor, token_types: torch.Tensor) -> torch.Tensor:
        first, types = self.first_position, self.embedding.num_tokentypes
        positions = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        return self.embedding(tokens, positions[None], token_types if types else None)


class MaskedTokenHead(MegatronModule):
    """From what a token has become to what is compared with the embeddings of all tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.dense = get_linear_layer(config.hidden_size, config.hidden_size, config.init_method)
        self.layer_norm = Norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden)."""
        return self.layer_norm(self.config.activation_func(self.dense(hidden)))
