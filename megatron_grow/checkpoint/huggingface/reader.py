"""Read a Hugging Face model, slice by slice."""

from __future__ import annotations

from dataclasses import asdict
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.huggingface import files
from megatron_grow.checkpoint.huggingface.config import family_of, to_model
from megatron_grow.checkpoint.huggingface.places import places, todays_names
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.regions import Region
from megatron_grow.checkpoint.side_files import CONFIG
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.state.boxes import Box, shape_of, slices
from megatron_grow.state.memory import empty


class HuggingFaceReader(Reader):
    """A directory of ``config.json`` and safetensors: weights, without optimizer state."""

    format = "Hugging Face"
    of_a_run = False

    def __init__(self, path: Path) -> None:
        """Read what the directory says of itself; no tensor is read.

        Args:
            path: the directory.

        Raises:
            UserError: a model that cannot be expressed here, or is not whole.
        """
        self.path = path
        values = files.read_object(path / CONFIG)
        self._family = family = family_of(values, path / CONFIG)
        self._file_of: dict[str, Path] = {}
        stored = files.weight_files(path)
        for file, names in stored.items():
            self._file_of |= {name: path / file for name in names}
        self.layout = f"{len(stored)} files" if len(stored) > 1 else "1 file"
        named = todays_names(family, self._file_of, path)
        model = to_model(values, path / CONFIG, named)
        if model.num_layers > len(named):  # before they are listed
            raise UserError(
                f"{path / CONFIG} says {model.num_layers} layers, but there are "
                f"{len(named)} tensors"
            )
        self.tensors = logical_tensors(model)
        found = places(family, model, named, path)
        self._regions, self._copies = found.regions, found.copies
        self.notes = (found.left_out,) if found.left_out else ()
        self._dtypes = self._check_tensors()
        self.record = self._starting_record(model)

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values; of several the one that holds all of them exactly."""
        return self._dtypes[key]

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``, in fine axes.

        Raises:
            UserError: a file that cannot be read.
        """
        out = empty(shape_of(box), self._dtypes[key])
        for region in self._regions.overlapping(key, box):
            with files.opened(self._file_of[region.name]) as file:
                stored = file.get_slice(region.name)
                for part, where in region.parts(box):
                    values = stored[slices(where)]
                    for copy in self._copies.get(region.name, ()):
                        self._check_copy(copy.name, region.name, values, where)
                    # Copied, so that nothing stays mapped.
                    out[slices(part, box)] = region.to_logical(values, part)
        return out

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Those of ``transformers``."""
        try:
            import transformers
            from transformers.utils.logging import disable_progress_bar
        except ImportError:
            raise UserError(
                "--forward runs a Hugging Face model in transformers: pip install "
                "'megatron_grow[hf]'"
            ) from None
        disable_progress_bar()
        kind = getattr(transformers, self._family.class_of(self.record.model_config))
        model = kind.from_pretrained(self.path, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        return model(tokens)[0]  # what comes behind is of other heads

    def _check_tensors(self) -> dict[str, torch.dtype]:
        """Shapes and data types of all that is stored; the data type of each logical tensor."""
        dtypes: dict[str, list[torch.dtype]] = {key: [] for key in self.tensors}
        by_file: dict[Path, list[Region]] = {}
        for region in (*self._regions.by_name.values(), *chain(*self._copies.values())):
            by_file.setdefault(self._file_of[region.name], []).append(region)
        for path, here in by_file.items():
            with files.opened(path) as file:
                for region in here:
                    stored = file.get_slice(region.name)
                    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
                    if shape != region.shape:
                        raise UserError(
                            f"{path}: {region.name} has shape {shape}; {CONFIG} asks for "
                            f"{region.shape}"
                        )
                    if dtype not in files.DTYPES:
                        raise UserError(
                            f"{path}: {region.name} is stored as {dtype}; "
                            f"{', '.join(files.DTYPES)} can be read"
                        )
                    dtypes[region.key].append(files.DTYPES[dtype])
        return {key: reduce(torch.promote_types, found) for key, found in dtypes.items()}

    def _check_copy(self, name: str, original: str, values: torch.Tensor, where: Box) -> None:
        """What is stored twice must be the same both times."""
        with files.opened(self._file_of[name]) as file:
            copy = file.get_slice(name)[slices(where)]
            if copy.dtype != values.dtype or not torch.equal(copy, values):
                raise UserError(
                    f"{self._file_of[name]}: {name} differs from {original}, of which a model "
                    f"with this {CONFIG} makes a copy"
                )

    def _starting_record(self, model: ModelConfig) -> Record:
        narrow = set(self._dtypes.values()) == {torch.bfloat16}
        precision = "bf16" if narrow else "fp32"
        shape = asdict(model)
        return Record(
            step=0,
            stage=0,
            consumed_samples=0,
            consumed_tokens=0,
            optimizer_step=0,
            model=shape,
            precision=precision,
            config={
                "model": shape,
                "train": {
                    "seq_length": architecture_of(model).longest_sequence(model),
                    "precision": precision,
                },
                "data": self._tokenizer(),
            },
        )

    def _tokenizer(self) -> dict[str, Any]:
        """As the section ``data`` of a run file names it."""
        if (self.path / "tokenizer.json").exists():
            return {"tokenizer": str(self.path / "tokenizer.json")}
        vocabulary, merges = self.path / "vocab.json", self.path / "merges.txt"
        if vocabulary.exists() and merges.exists():
            return {
                "tokenizer": "gpt2",
                "vocab_file": str(vocabulary),
                "merge_file": str(merges),
            }
        if (words := self.path / "vocab.txt").exists():
            return {"tokenizer": str(words)}
        return {}
