"""BERT, as an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import Self

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.config.sections import TrainSection
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, CountOrZero
from megatron_grow.model.architecture import Architecture, Loss
from megatron_grow.model.bert import flops
from megatron_grow.model.bert.huggingface.families import FAMILIES
from megatron_grow.model.bert.lengths import pooled_length
from megatron_grow.model.bert.tensors import bert_tensors
from megatron_grow.model.huggingface import Family
from megatron_grow.model.masks import MaskPoints
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from megatron_grow.config.run import RunConfig
    from megatron_grow.config.stages import Stage
    from megatron_grow.data.check import Split
    from megatron_grow.data.datasets import Datasets


@dataclass(frozen=True)
class BERT(Architecture):
    """Megatron-Core's BERT, and the original's order of norms."""

    changing: ClassVar[frozenset[str]] = frozenset({"pool_size"})
    generates: ClassVar[bool] = False
    data_options: ClassVar[type] = MaskedOptions

    norm_position: Literal["post", "pre"] = "post"
    """``post``: norms follow the sums of the residual stream (Devlin et al. 2018); ``pre``: they
    begin each branch, as in Megatron-LM."""
    token_types: CountOrZero = 2
    """Kinds of tokens that an embedding tells apart, such as those of a first and a second
    sentence; 0: none."""
    sentence_head: Literal["next_sentence", "sentence_order", "none"] = "next_sentence"
    """What a second head predicts of two sentences, from the first token, and how samples are made
    for it; ``none``: there is no such head, and no pooler."""
    first_position: CountOrZero = 0
    """Row of the table of positions that the first token has; RoBERTa's is 2."""
    pool_size: Count = 1
    """Neighbouring tokens that share a place behind the first layer, all but the first token and
    the masked ones (CompoundGrow, Gu et al. 2020); 1: each has its own."""

    def changes_since(self, before: Self, where: str) -> dict[str, str]:
        """A model with fewer tokens in a place computes something else with the same weights."""
        was, is_ = before.pool_size, self.pool_size
        if is_ > was:
            raise UserError(
                f"{where}: model.options.pool_size={is_} is more than the {was} before; sequences "
                "between layers only grow"
            )
        if is_ == was:
            return {}
        return {"pool_size": f"{was} -> {is_} tokens in a place"}

    @property
    def post_norm(self) -> bool:
        """Whether norms follow the sums of the residual stream."""
        return self.norm_position == "post"

    @property
    def has_sentence_head(self) -> bool:
        """Whether there is a head over pairs of sentences."""
        return self.sentence_head != "none"

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        """As :func:`.tensors.bert_tensors`."""
        if model.position_embedding_type != "learned_absolute":
            raise UserError(
                f"model.position_embedding_type={model.position_embedding_type}: the positions of "
                "this architecture are learned; must be learned_absolute"
            )
        return bert_tensors(
            model,
            target_depth,
            post_norm=self.post_norm,
            token_types=self.token_types,
            sentence_head=self.has_sentence_head,
            first_position=self.first_position,
        )

    def check(self, stage: Stage, train: TrainSection, where: str) -> None:
        """Besides: kinds of tokens, what attention to both sides rules out, rows of positions."""
        model, parallel = stage.model, stage.parallel
        if self.has_sentence_head and self.token_types == 1:
            raise UserError(
                f"{where}: model.options.token_types=1 has no second kind for the second sentence, "
                f"which sentence_head={self.sentence_head} is about; give it 2, 0 to not tell them "
                "apart, or sentence_head: none"
            )
        if parallel.context_parallel_size > 1:
            raise UserError(
                f"{where}: parallel.context_parallel_size={parallel.context_parallel_size}: ranks "
                "share the tokens of a sequence under causal attention alone; must be 1"
            )
        if train.transformer_impl != "local":
            raise UserError(
                f"train.transformer_impl={train.transformer_impl}: model.architecture="
                f"{model.architecture} has local layers alone; must be local"
            )
        if self.pool_size > 1 and model.num_layers:
            first, *_ = chunk_layers(parallel, model.num_layers, where)[0]
            if not first:
                raise UserError(
                    f"{where}: model.options.pool_size={self.pool_size}: tokens share places in "
                    "the first layer, which must be in the first pipeline stage, and that has no "
                    "layer; give it one, or make pool_size 1"
                )
        length = stage.batch.seq_length
        longest = self.longest_sequence(model)
        if length > longest:
            raise UserError(
                f"{where}: train.seq_length={length} is longer than {longest}, "
                f"model.max_position_embeddings={model.max_position_embeddings} less "
                f"model.options.first_position={self.first_position}"
            )

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        """As :func:`.build.build_bert`."""
        from megatron_grow.model.bert.build import build_bert
        from megatron_grow.model.engine_config import transformer_config

        return build_bert(
            model,
            transformer_config(model, parallel, train),
            train,
            post_norm=self.post_norm,
            first_position=self.first_position,
            token_types=self.token_types,
            sentence_head=self.has_sentence_head,
            pool_size=self.pool_size,
        )

    def check_data(self, config: RunConfig, stages: list[Stage]) -> tuple[Split, Split | None]:
        """As :func:`.batch.check_data`."""
        from megatron_grow.model.bert import batch

        return batch.check_data(config, self.sentence_head)

    def datasets(
        self, data: tuple[Split, Split | None], config: RunConfig, train_samples: int
    ) -> Datasets:
        """As :func:`.batch.datasets`."""
        from megatron_grow.model.bert import batch

        return batch.datasets(data, config, self.sentence_head, train_samples)

    def cut(self, samples: Dataset, parts: int) -> Dataset:
        """Samples made for the shorter length, since a pair of sentences has no parts."""
        from megatron_grow.data.masked.datasets import SamplesByLength

        assert isinstance(samples, SamplesByLength), "as datasets() makes them"
        return samples.cut(parts)

    def reads(self, *, first: bool, last: bool) -> bool:
        """All chunks: attention must know of padding."""
        return True

    def longest_sequence(self, model: ModelConfig) -> int:
        """Rows of the table of positions, from the first token's on."""
        return model.max_position_embeddings - self.first_position

    def hidden_length(
        self, model: ModelConfig, seq_length: int, data_options: Any, multiple: int = 1
    ) -> int:
        """Places, where tokens share them; a model without layers has none to pool them."""
        if not model.num_layers:
            return seq_length
        masked = data_options.most_masked(seq_length)
        return pooled_length(seq_length, masked, self.pool_size, multiple)

    def head_length(self, seq_length: int, data_options: Any) -> int:
        """Masked tokens alone."""
        return data_options.most_masked(seq_length)

    def layer_reads(self, model: ModelConfig, seq_length: int, data_options: Any) -> int:
        """As :func:`.flops.layer_reads`."""
        hidden_length = self.hidden_length(model, seq_length, data_options)
        return flops.layer_reads(self.tensors(model, None), seq_length, hidden_length)

    @property
    def losses(self) -> tuple[str, ...]:
        """One for each head."""
        return ("masked_lm_loss", *(("sentence_loss",) if self.has_sentence_head else ()))

    @property
    def metrics(self) -> tuple[str, ...]:
        """How often each head is right."""
        return ("masked_lm_accuracy", *(("sentence_accuracy",) if self.has_sentence_head else ()))

    def counts(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Masked tokens, and samples."""
        from megatron_grow.model.bert import batch as samples

        return samples.counts(batch, sentence_head=self.has_sentence_head)

    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        """As :func:`.batch.forward_step`."""
        from megatron_grow.model.bert.batch import forward_step

        assert batch is not None, "all chunks read"
        return forward_step(chunk, batch)

    def logits(self, chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """As :func:`.batch.logits`."""
        from megatron_grow.model.bert import batch

        return batch.logits(chunk, tokens)

    def example(self, tokens: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """As :func:`.batch.example`."""
        from megatron_grow.model.bert import batch

        return batch.example(tokens)

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        """As :func:`.masks.mask_points`."""
        from megatron_grow.model.bert.masks import mask_points

        return mask_points(chunk, post_norm=self.post_norm)

    def model_flops_per_token(
        self, model: ModelConfig, seq_length: int, data_options: Any, *, causal: bool
    ) -> float:
        """As :func:`.flops.model_flops_per_sample`; all attention is whole."""
        per_sample = flops.model_flops_per_sample(
            model,
            self.tensors(model, None),
            seq_length,
            hidden_length=self.hidden_length(model, seq_length, data_options),
            masked=data_options.most_masked(seq_length),
        )
        return per_sample / seq_length

    def families(self) -> Mapping[str, Family]:
        """BERT, Megatron-LM's BERT and RoBERTa."""
        return FAMILIES
