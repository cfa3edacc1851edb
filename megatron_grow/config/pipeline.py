"""Which layers each pipeline rank holds, by megatron-core's rules.

The model is cut, in order, into *chunks*, and chunk ``i`` goes to pipeline rank ``i % PP``. One
chunk for each rank is a plain pipeline; a multiple of that is an interleaved (virtual) one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count

# Groups first, as megatron-core does: (ab)*2 is abab; then x*n is n times x.
_REPEATS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))
_LONGEST = 1_000_000


@dataclass(frozen=True)
class PipelineConfig:
    """How the layers are split over pipeline ranks; a part of the parallel layout."""

    pipeline_model_parallel_size: Count = 1
    virtual_pipeline_model_parallel_size: Count | None = None
    """Chunks of layers on each pipeline rank, run by the interleaved schedule: of 4 layers on 2
    ranks with 2 chunks each, the first has layers 0 and 2. Absent: 1, or what the layout says."""
    account_for_embedding_in_pipeline_split: bool = False
    """Count the embedding as a layer: the first pipeline stage gets one layer less."""
    account_for_loss_in_pipeline_split: bool = False
    """Count the head and its loss as a layer: the last pipeline stage gets one layer less."""
    num_layers_in_first_pipeline_stage: Count | None = None
    """Layers of the first pipeline rank, in all its chunks; the others share the rest evenly."""
    num_layers_in_last_pipeline_stage: Count | None = None
    """Layers of the last pipeline rank, in all its chunks; the others share the rest evenly."""
    pipeline_model_parallel_layout: str | None = None
    """All pipeline stages by hand, as in ``Et|(tt|)*2,tL``: E is the embedding, t a layer, L the
    loss; | ends one; x*n and (...)*n repeat. Twice as many as ranks make 2 chunks on each."""

    @property
    def model_chunks(self) -> int:
        """Chunks of layers on each pipeline rank; more than one are interleaved."""
        if self.pipeline_model_parallel_layout is not None:
            pipeline_stages = len(parse_layout(self.pipeline_model_parallel_layout))
            return pipeline_stages // self.pipeline_model_parallel_size
        return self.virtual_pipeline_model_parallel_size or 1

    @property
    def layers_at_ends(self) -> dict[str, int]:
        """Those of the fields ``num_layers_in_*_pipeline_stage`` that are given."""
        fields = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
        return {field: getattr(self, field) for field in fields if getattr(self, field) is not None}

    @property
    def counted_as_layers(self) -> list[str]:
        """Those of the fields ``account_for_*_in_pipeline_split`` that are set."""
        fields = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")
        return [field for field in fields if getattr(self, field)]


def parse_layout(layout: str) -> list[str]:
    """The chunks of ``pipeline_model_parallel_layout``, each a string of the letters E, t and L.

    ``|`` ends a chunk, ``x*n`` and ``(...)*n`` repeat, and commas mean nothing: ``Et|(tt|)*2,L`` is
    ``["Et", "tt", "tt", "L"]``.

    Raises:
        UserError: another letter, or an embedding or a loss that is not at its end of the model.
    """
    text = layout.replace(",", "")
    field = f"parallel.pipeline_model_parallel_layout={layout}"
    for pattern in _REPEATS:
        if sum(len(found[1]) * int(found[2]) for found in pattern.finditer(text)) > _LONGEST:
            raise UserError(f"{field} repeats more than {_LONGEST:,} letters")
        text = pattern.sub(lambda found: found[1] * int(found[2]), text)
    unknown = sorted(set(text) - set("EtL|"))
    if unknown:
        raise UserError(
            f"{field} has {', '.join(map(repr, unknown))}; known are E (embedding), t (a layer), "
            "L (loss), | between pipeline stages, x*n or (...)*n for repeats"
        )
    if not (text[:1] == "E" and text[-1:] == "L" and text.count("E") == text.count("L") == 1):
        raise UserError(f"{field} must begin with E (embedding), end with L (loss), each once")
    return text.split("|")


def check_pipeline(pipeline: PipelineConfig) -> None:
    """Raise :class:`UserError` for pipeline fields that do not go together, whatever the model."""
    ranks, ends = pipeline.pipeline_model_parallel_size, pipeline.layers_at_ends
    virtual = pipeline.virtual_pipeline_model_parallel_size
    layout = pipeline.pipeline_model_parallel_layout
    if ranks == 1:
        _check_one_rank(layout, virtual if virtual != 1 else None, ends)
        return
    if layout is not None:
        _check_layout(layout, ranks, virtual, [*ends, *pipeline.counted_as_layers])
    if ends and pipeline.counted_as_layers:
        raise UserError(
            f"parallel.{' and '.join(ends)} cannot be used with "
            f"{' and '.join(pipeline.counted_as_layers)}; leave one or the other out"
        )
    if ranks == len(ends) == 2 and pipeline.model_chunks > 1:  # megatron-core divides by zero
        raise UserError(
            f"parallel.{' and '.join(ends)} cannot both be given with "
            "pipeline_model_parallel_size=2 and virtual_pipeline_model_parallel_size="
            f"{pipeline.model_chunks}; one follows from the other, leave it out"
        )


def _check_one_rank(layout: str | None, virtual: int | None, ends: dict[str, int]) -> None:
    several = {
        "pipeline_model_parallel_layout": layout,
        "virtual_pipeline_model_parallel_size": virtual,
        **ends,
    }
    for field, value in several.items():
        if value is not None:
            raise UserError(
                f"parallel.{field}={value} needs pipeline_model_parallel_size to be at least 2"
            )


def _check_layout(layout: str, ranks: int, virtual: int | None, others: list[str]) -> None:
    count = len(parse_layout(layout))
    field = f"parallel.pipeline_model_parallel_layout={layout}"
    if count % ranks:
        raise UserError(
            f"{field} has {count} pipeline stages, which is not a multiple of "
            f"pipeline_model_parallel_size={ranks}"
        )
    if virtual not in (None, count // ranks):
        raise UserError(
            f"{field} has {count} pipeline stages for {ranks} ranks: "
            f"virtual_pipeline_model_parallel_size={virtual} must be {count // ranks} or left out"
        )
    if others:
        raise UserError(
            f"{field} already says which pipeline stage has what; leave {others[0]} out"
        )


def chunk_layers(pipeline: PipelineConfig, num_layers: int, where: str) -> list[list[range]]:
    """The layers of chunk ``c`` of pipeline rank ``r``, at ``[r][c]``.

    Raises:
        UserError: ``num_layers`` layers cannot be cut this way; the message begins with ``where``.
    """
    ranks, chunks = pipeline.pipeline_model_parallel_size, pipeline.model_chunks
    counts = _counts(pipeline, num_layers, where)
    layers = [
        range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)
    ]
    return [[layers[chunk * ranks + rank] for chunk in range(chunks)] for rank in range(ranks)]


def _counts(pipeline: PipelineConfig, num_layers: int, where: str) -> list[int]:
    """Layers of each chunk, in the model's order."""
    layout = pipeline.pipeline_model_parallel_layout
    if layout is not None:
        counts = [chunk.count("t") for chunk in parse_layout(layout)]
        if sum(counts) != num_layers:
            raise UserError(
                f"{where}: pipeline_model_parallel_layout={layout} has {sum(counts)} layers (t), "
                f"but num_layers={num_layers}"
            )
        return counts
    chunks, counted = pipeline.model_chunks, pipeline.counted_as_layers
    by_rank = _layers_of_ranks(pipeline, num_layers, where)
    for rank, count in enumerate(by_rank):
        if count % chunks:
            raise UserError(
                f"{where}: virtual_pipeline_model_parallel_size={chunks} does not divide the "
                f"{count} layers of pipeline rank {rank}{_with(counted)}; each rank needs a "
                f"multiple of {chunks}"
            )
    counts = [count // chunks for _ in range(chunks) for count in by_rank]
    counts[0] -= pipeline.account_for_embedding_in_pipeline_split
    counts[-1] -= pipeline.account_for_loss_in_pipeline_split
    return counts


def _layers_of_ranks(pipeline: PipelineConfig, num_layers: int, where: str) -> list[int]:
    """Layers of each pipeline rank, embedding and loss among them where they count as layers."""
    ranks, ends = pipeline.pipeline_model_parallel_size, pipeline.layers_at_ends
    counted = pipeline.counted_as_layers
    left, sharing = num_layers + len(counted) - sum(ends.values()), ranks - len(ends)
    named = " and ".join(f"{field}={count}" for field, count in ends.items())
    if not sharing and left:
        raise UserError(
            f"{where}: {named} must add up to num_layers={num_layers} under "
            f"pipeline_model_parallel_size={ranks}"
        )
    if ends and sharing and (left < sharing or left % sharing):
        raise UserError(
            f"{where}: {named} with num_layers={num_layers} and "
            f"pipeline_model_parallel_size={ranks}: {left} layers are left for {sharing} other "
            "rank(s), which need the same number each, at least one"
        )
    if not ends and ranks > 1 and (left == 0 or left % ranks):
        raise UserError(
            f"{where}: pipeline_model_parallel_size={ranks} does not divide "
            f"num_layers={num_layers}{_with(counted)}; each pipeline stage needs the same number "
            "of layers, at least one, unless account_for_embedding_in_pipeline_split, "
            "account_for_loss_in_pipeline_split, num_layers_in_first_pipeline_stage, "
            "num_layers_in_last_pipeline_stage or pipeline_model_parallel_layout say otherwise"
        )
    even = left // sharing if sharing else 0
    first = ends.get("num_layers_in_first_pipeline_stage", even)
    last = ends.get("num_layers_in_last_pipeline_stage", even)
    return [first, *[even] * (ranks - 2), last] if ranks > 1 else [even]


def _with(counted: list[str]) -> str:
    """For a message: what is counted as a layer."""
    return f" with {' and '.join(counted)}" if counted else ""
