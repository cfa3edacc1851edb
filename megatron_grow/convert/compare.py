"""Whether two checkpoints hold the same training state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import torch

from megatron_grow.checkpoint.copy import ELEMENTS_PER_BLOCK
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.progress import Progress
from megatron_grow.model.architectures import architecture_of
from megatron_grow.state.boxes import Box, full, split, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.memory import as_bits, cast, contiguous
from megatron_grow.state.tensors import LogicalTensor


@dataclass
class Comparison:
    """What was compared, and what differs."""

    same: int = 0
    """Tensors, counted for each kind of state, whose values are equal."""
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no difference, yet worth knowing."""
    types: Counter[tuple[torch.dtype, torch.dtype]] = field(default_factory=Counter)
    """How many of the equal tensors the two store in different types."""


def compare(a: Reader, b: Reader, *, weights_only: bool, progress: Progress) -> Comparison:
    """Compare two checkpoints of any formats and layouts, tensor by tensor.

    Values are equal in whatever types they are stored. Of ``weights_only``, those that one of the
    two has only in a less precise type are compared in that type.

    Args:
        a: one.
        b: the other.
        weights_only: leave out optimizer state and where training stands.
        progress: is told.
    """
    found = Comparison()
    _compare_models(a.record.model_config, b.record.model_config, found)
    if not weights_only:
        _compare_progress(a, b, found)
    keys = [key for key in a.tensors if key in b.tensors]
    for key in sorted(set(a.tensors) ^ set(b.tensors)):
        only = a if key in a.tensors else b
        found.differences.append(f"{key} is in {only.path} alone")
    total = sum(volume(full(a.tensors[key].shape)) * len(a.kinds(key)) for key in keys)
    with progress.task("comparing", total) as advance:
        for key in keys:
            box = _whole(a.tensors[key], b.tensors[key], found)
            kinds = (MAIN_PARAM,) if weights_only else tuple(a.kinds(key))
            for kind in sorted({*kinds, *(() if weights_only else b.kinds(key))}):
                if kind not in a.kinds(key) or kind not in b.kinds(key):
                    only = a if kind in a.kinds(key) else b
                    found.differences.append(f"{kind} of {key} is in {only.path} alone")
                elif box is not None:
                    _compare_values(a, b, key, kind, box, weights_only, found)
                    advance(volume(box))
    for (x, y), count in found.types.items():
        found.notes.append(f"{count} equal tensors are stored as {_name(x)} and as {_name(y)}")
    return found


def same_shape(a: Reader, b: Reader) -> bool:
    """Whether two models have the same tensors."""
    x, y = ({key: t.shape for key, t in source.tensors.items()} for source in (a, b))
    return x == y


def _compare_models(a: ModelConfig, b: ModelConfig, found: Comparison) -> None:
    for entry in fields(ModelConfig):
        name, x, y = entry.name, getattr(a, entry.name), getattr(b, entry.name)
        if derived := _DERIVED.get(name):
            x, y = getattr(a, derived), getattr(b, derived)
        elif name in a.multipliers:
            x, y = a.multipliers[name], b.multipliers[name]
        elif name == "options":  # those left out have a value as well
            x, y = (asdict(architecture_of(model)) for model in (a, b))
        if x == y:
            continue
        if name in _NOT_THE_FUNCTION:
            found.notes.append(f"model.{name}: {x} and {y}")
        else:
            found.differences.append(f"model.{name}: {x} and {y}")


_DERIVED = {
    "num_query_groups": "query_groups",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "ffn_size",
    "layer_sharing": "sharing",
}
"""What fields say that can say the same in several ways."""

_NOT_THE_FUNCTION = (
    "make_vocab_size_divisible_by",
    "init_method_std",
    "hidden_dropout",
    "attention_dropout",
)


def _compare_progress(a: Reader, b: Reader, found: Comparison) -> None:
    for name in ("step", "consumed_tokens", "optimizer_step", "precision"):
        x, y = getattr(a.record, name), getattr(b.record, name)
        if x != y:
            found.differences.append(f"{name}: {x} and {y}")


def _whole(a: LogicalTensor, b: LogicalTensor, found: Comparison) -> Box | None:
    """The box of all values; None where the shapes differ, which is told."""
    if a.shape == b.shape:
        return full(a.shape)
    found.differences.append(f"{a.key}: shape {a.checkpoint_shape} and {b.checkpoint_shape}")
    return None


def _compare_values(
    a: Reader, b: Reader, key: str, kind: str, box: Box, weights_only: bool, found: Comparison
) -> None:
    types = a.dtype(key, kind), b.dtype(key, kind)
    common = less_precise(*types) if weights_only else torch.promote_types(*types)
    count, largest = 0, 0.0
    for x, y in _pairs(a, b, key, kind, box):
        x, y = contiguous(cast(x, common)), contiguous(cast(y, common))
        # Bits: a NaN is equal to itself, and -0.0 is not 0.0.
        if torch.equal(as_bits(x), as_bits(y)):
            continue
        differ = as_bits(x) != as_bits(y)
        count += int(differ.sum())
        apart = (x[differ].double() - y[differ].double()).abs().max()
        largest = float(np.maximum(largest, float(apart)))  # a NaN stays one
    if count:
        # Bits that differ in equal numbers are signs of zeros.
        by = f"by at most {largest:.3g}" if largest else "0.0 and -0.0"
        found.differences.append(
            f"{kind} of {key}: {count:,} of {volume(box):,} values differ, {by}"
        )
        return
    found.same += 1
    if types[0] != types[1]:
        found.types[types] += 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def less_precise(x: torch.dtype, y: torch.dtype) -> torch.dtype:
    """That of two types of weights which keeps fewer digits."""
    return max(x, y, key=lambda dtype: torch.finfo(dtype).eps)


def _pairs(
    a: Reader, b: Reader, key: str, kind: str, box: Box
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for part in split(box, ELEMENTS_PER_BLOCK):
        yield a.read(key, kind, part), b.read(key, kind, part)
