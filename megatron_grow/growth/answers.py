"""What a plan asks about its source, answered from live pieces or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Literal

import torch

from megatron_grow.parallel.agreement import place, reduced, together
from megatron_grow.state.boxes import Box, full, split, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.materialise import Read
from megatron_grow.state.piece import Piece
from megatron_grow.state.questions import Answers, Question, Weights, answer

# Values read at a time.
_AT_A_TIME = 1 << 24


def of_pieces(pieces: Iterable[Piece], questions: Iterable[Question]) -> Answers:
    """From what all ranks hold together; every rank takes part."""
    pieces = list(pieces)

    def weights(question: Question) -> Weights:
        for piece in pieces:
            if piece.owned and (piece.key, piece.kind) == (question.tensor.key, MAIN_PARAM):
                yield piece.box, piece.data

    return {asked: answer(asked, partial(weights, asked), _everyone) for asked in questions}


def of_checkpoint(read: Read, questions: Iterable[Question]) -> Answers:
    """From a checkpoint, which the ranks read in turn; every rank takes part.

    Raises:
        UserError: on every rank, if it is damaged where one of them reads.
    """
    rank, ranks = place()
    return {
        asked: answer(asked, partial(_read, read, asked, rank, ranks), _everyone)
        for asked in questions
    }


def by_itself(read: Read, questions: Iterable[Question]) -> Answers:
    """From a checkpoint, by this process alone."""
    return {
        asked: answer(asked, partial(_read, read, asked, 0, 1), lambda measure, _: measure())
        for asked in questions
    }


def _everyone(measure: Callable[[], torch.Tensor], how: Literal["max", "sum"]) -> torch.Tensor:
    """Over all ranks; a mistake of one is that of all."""
    return reduced(together(measure), how)


def _read(
    read: Read, question: Question, rank: int, ranks: int
) -> Iterator[tuple[Box, torch.Tensor]]:
    """Every ``ranks``-th part, from that of ``rank`` on."""
    tensor, whole = question.tensor, full(question.tensor.shape)
    parts = list(split(whole, min(_AT_A_TIME, -(-volume(whole) // ranks))))
    for box in parts[rank::ranks]:
        yield box, read(tensor.key, MAIN_PARAM, box)
