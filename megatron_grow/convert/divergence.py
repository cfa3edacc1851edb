"""How far models are from each other, and from a text: members of a family, say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import log_softmax

from megatron_grow.checkpoint.layout import DTYPES
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.forward import by_engine, engine
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of

_ENTRIES = 1 << 24
"""Logits of one model that are held at a time, unless a single sequence has more."""


class Spread(NamedTuple):
    """A mean over tokens."""

    mean: float
    """In nats."""
    error: float
    """Its standard error. Tokens of one sequence depend on each other, so it is taken from the
    means of sequences: their standard deviation over the root of their number."""

    @classmethod
    def of(cls, means: torch.Tensor) -> Spread:
        """That of the means of sequences of one length, (sequences,) in fp64."""
        return cls(float(means.mean()), float(means.std()) / math.sqrt(len(means)))


@dataclass(frozen=True)
class Divergence:
    """What models say of the next tokens of one text."""

    paths: list[Path]
    """Of the models."""
    sequences: int
    seq_length: int
    losses: list[Spread]
    """Cross-entropy of each model; its perplexity is the exponential."""
    kl: list[list[Spread]]
    """``kl[i][j]``: KL(model i || model j), what is lost where j stands for i."""


def measure(sources: Sequence[Reader], samples: torch.Tensor) -> Divergence:
    """Run models side by side over one text, in fp32, on one process.

    All of them are held at once, and the logits of a few sequences: memory does not grow with the
    text. Weights are of the precision that the model was trained in.

    Args:
        sources: at least one; of models with one vocabulary, which go on with a text.
        samples: token ids, (sequences, seq_length + 1), at least two sequences.
    """
    vocabulary = sources[0].record.model_config.vocabulary
    at_a_time = max(1, _ENTRIES // (samples.shape[1] * vocabulary))
    losses: list[list[torch.Tensor]] = [[] for _ in sources]
    kl: list[list[list[torch.Tensor]]] = [[[] for _ in sources] for _ in sources]
    with engine():
        models = [by_engine(source, DTYPES[source.record.precision]) for source in sources]
        for batch in samples.split(at_a_time):
            tokens, labels = batch[:, :-1], batch[:, 1:, None]
            said = [log_softmax(model(tokens)[..., :vocabulary], dim=-1) for model in models]
            for i, p in enumerate(said):
                losses[i].append(-p.gather(-1, labels).double().mean(dim=(1, 2)))
                for j, q in enumerate(said):
                    # Not as a difference of entropies: they are nearly the same.
                    nats = (p.exp() * (p - q)).double().sum(dim=-1)
                    kl[i][j].append(nats.mean(dim=1))
    return Divergence(
        paths=[source.path for source in sources],
        sequences=len(samples),
        seq_length=samples.shape[1] - 1,
        losses=[Spread.of(torch.cat(found)) for found in losses],
        kl=[[Spread.of(torch.cat(found)) for found in row] for row in kl],
    )


def check_members(sources: Sequence[Reader]) -> None:
    """Refuse models that do not say the same kind of thing of the same tokens.

    Raises:
        UserError: one that predicts no next token, or with another vocabulary than the first.
    """
    vocabulary = sources[0].record.model_config.vocabulary
    for source in sources:
        model = source.record.model_config
        if not architecture_of(model).generates:
            raise UserError(
                f"{source.path} is of architecture {model.architecture}, which does not go on with "
                "a text"
            )
        if model.vocabulary != vocabulary:
            raise UserError(
                f"{source.path} knows {model.vocabulary:,} tokens and {sources[0].path} "
                f"{vocabulary:,}: what they say cannot be compared"
            )


def seq_length(sources: Sequence[Reader], wished: int | None) -> int:
    """Tokens that all models read at once: as wished, or the longest that all were trained on.

    Raises:
        UserError: more than one of them can read.
    """
    most = {source.path: _longest(source.record.model_config) for source in sources}
    path = min(most, key=lambda path: most[path])
    if wished is None:
        trained = [source.record.config.get("train", {}).get("seq_length") for source in sources]
        return min([most[path], *(length for length in trained if length)])
    if not 1 <= wished <= most[path]:
        raise UserError(
            f"--seq-length {wished} must be at least 1 and at most {most[path]}, all that {path} "
            "can read"
        )
    return wished


def _longest(model: ModelConfig) -> int:
    return architecture_of(model).longest_sequence(model)


def lines(found: Divergence) -> Iterator[str]:
    """A table for people."""
    names = [f"[{number}]" for number in range(1, len(found.paths) + 1)]
    for name, path, loss in zip(names, found.paths, found.losses, strict=True):
        perplexity = math.exp(loss.mean)
        yield (
            f"{name} {path}: loss {loss.mean:.4f} +- {loss.error:.4f}, perplexity "
            f"{perplexity:.2f} +- {perplexity * loss.error:.2f}"
        )
    yield (
        f"KL(row || column) in nats per token, over {found.sequences} sequences of "
        f"{found.seq_length} tokens"
    )
    yield "".join(f"{name:>18}" for name in ("", *names))
    for name, row in zip(names, found.kl, strict=True):
        cells = ["-" if i == names.index(name) else _cell(kl) for i, kl in enumerate(row)]
        yield "".join(f"{cell:>18}" for cell in (name, *cells))


def _cell(kl: Spread) -> str:
    return f"{kl.mean:.4f} +- {kl.error:.4f}"
