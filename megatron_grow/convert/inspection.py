"""What a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch

from megatron_grow.checkpoint.copy import ELEMENTS_PER_BLOCK
from megatron_grow.checkpoint.manifest import digest, digest_of, read_checked, read_manifest
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.progress import Progress
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full, split, volume
from megatron_grow.state.finite import is_finite
from megatron_grow.state.kinds import MAIN_PARAM, describe


def inspect(source: Reader) -> Iterator[str]:
    """Lines that tell what a checkpoint is; opening it has shown that nothing is missing."""
    record = source.record
    parameters = sum(volume(full(tensor.shape)) for tensor in source.tensors.values())
    yield f"{source.path}: {source.format}, written for {source.layout}"
    yield (
        f"step {record.step:,}, stage {record.stage}, {record.consumed_tokens:,} tokens, "
        f"{record.precision}"
    )
    yield f"{parameters:,} parameters"
    yield "model: " + ", ".join(_shape(record.model_config))
    kinds = sorted({kind for key in source.tensors for kind in source.kinds(key)} - {MAIN_PARAM})
    if kinds:
        yield f"optimizer state: {', '.join(kinds)}, after {record.optimizer_step:,} updates"
    else:
        yield "no optimizer state"
    for note in source.notes:
        yield f"note: {note}"
    for event in record.growths:
        yield (
            f"grew at step {event.step:,}: {event.summary} "
            f"({event.source_layout} -> {event.target_layout})"
        )
    for end in record.stage_ends:
        yield f"stages[{end.stage}] ends at step {end.step:,}: {end.reason}"
    yield "tensors:"
    for key, tensor in source.tensors.items():
        stored = ", ".join(f"{kind} {_name(source.dtype(key, kind))}" for kind in source.kinds(key))
        shape = " x ".join(map(str, tensor.checkpoint_shape))
        yield f"  {key}: {shape} ({stored})"


def check_files(source: Reader) -> None:
    """Compare the files without tensors with the manifest.

    Raises:
        UserError: one is missing, or is not what was written.
    """
    manifest = read_manifest(source.path)
    for name in manifest.files if manifest else ():
        try:
            read_checked(source.path / name)
        except FileNotFoundError:
            raise UserError(
                f"{source.path / name} is missing: the checkpoint is not complete"
            ) from None


def check_digests(source: Reader, progress: Progress) -> tuple[int, list[str]]:
    """Read all tensors of a checkpoint and compare them with its manifest.

    Returns:
        How many stored tensors agree, and notes on others, for people.

    Raises:
        UserError: one differs.
    """
    manifest, broken = read_manifest(source.path), []
    if manifest is None or not manifest.tensors:
        for name, values in _all_values(source, progress):  # which compares chunks' checksums
            if not is_finite(values):
                broken.append(name)
        return 0, _not_finite(broken)
    tensors, elements = manifest.tensors, manifest.elements_per_block
    if elements != ELEMENTS_PER_BLOCK:
        raise UserError(f"{source.path}: its manifest has blocks of {elements} elements")
    names = {name: key for key in source.tensors for name in source.names(key)}
    if set(names) != set(tensors):
        raise UserError(f"{source.path} does not hold the tensors that its manifest lists")
    padded = []
    total = sum(volume(full(source.tensors[key].shape)) for key in names.values())
    with progress.task("checking", total) as advance:
        for name, key in names.items():
            blocks = []
            for box in split(full(source.tensors[key].shape), elements):
                values = source.read_stored(name, key, box)
                blocks.append(digest(values))
                if not is_finite(values):
                    broken.append(name)
                advance(volume(box))
            tensor, stored = source.tensors[key], tensors[name]
            if stored.shape != tensor.checkpoint_shape and tensor.pads_to(stored.shape):
                padded.append(name)
            elif (stored.shape, stored.digest) != (tensor.checkpoint_shape, digest_of(blocks)):
                raise UserError(f"{source.path}: {name} is not what its manifest says")
    told = [
        f"{name} is readable; its digest is of an earlier version, which padded the vocabulary"
        for name in padded
    ]
    return len(names) - len(padded), told + _not_finite(broken)


def _not_finite(names: list[str]) -> list[str]:
    return [f"{name} is not finite" for name in dict.fromkeys(names)]


def _all_values(source: Reader, progress: Progress) -> Iterator[tuple[str, torch.Tensor]]:
    total = sum(
        volume(full(tensor.shape)) * len(source.kinds(key))
        for key, tensor in source.tensors.items()
    )
    with progress.task("checking", total) as advance:
        for key, tensor in source.tensors.items():
            for kind in source.kinds(key):
                for box in split(full(tensor.shape), ELEMENTS_PER_BLOCK):
                    yield describe(key, kind), source.read(key, kind, box)
                    advance(volume(box))


def _shape(model: ModelConfig) -> Iterator[str]:
    """The fields of a model that say something: those that are set, and the sizes."""
    always = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
    for field in fields(model):
        value = getattr(model, field.name)
        if field.name in always or value not in (field.default, {}):
            yield f"{field.name} {value}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
