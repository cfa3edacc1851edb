"""Read a Hugging Face model, slice by slice."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.huggingface import files
from megatron_grow.checkpoint.huggingface.config import family_of, to_model
from megatron_grow.checkpoint.huggingface.names import regions
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.regions import Region, Regions
from megatron_grow.checkpoint.side_files import CONFIG
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.model.huggingface import Family
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
        family = family_of(values, path / CONFIG)
        model = to_model(values, path / CONFIG)
        self._file_of: dict[str, Path] = {}
        stored = files.weight_files(path)
        for file, names in stored.items():
            self._file_of |= {name: path / file for name in names}
        self.layout = f"{len(stored)} files" if len(stored) > 1 else "1 file"
        self.tensors = logical_tensors(model)
        self._regions = self._find(family, model)
        self._copies = self._find_copies(family)
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
                    if key in self._copies:
                        self._check_copy(self._copies[key].name, region.name, values, where)
                    # Copied, so that nothing stays mapped.
                    out[slices(part, box)] = region.to_logical(values, part)
        return out

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Those of ``transformers``."""
        try:
            from transformers import AutoModelForCausalLM
            from transformers.utils.logging import disable_progress_bar
        except ImportError:
            raise UserError(
                "--forward runs a Hugging Face model in transformers: pip install "
                "'megatron_grow[hf]'"
            ) from None
        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
        return model(tokens).logits

    def _find(self, family: Family, model: ModelConfig) -> Regions:
        """Where all is stored; every stored tensor is accounted for."""
        if model.num_layers > len(self._file_of):  # before they are listed
            raise UserError(
                f"{self.path / CONFIG} says {model.num_layers} layers, but there are "
                f"{len(self._file_of)} tensors"
            )
        prefix = family.prefix
        bare = not any(name.startswith(prefix) for name in self._file_of)
        found = Regions(
            replace(region, name=region.name.removeprefix(prefix)) if bare else region
            for region in regions(family, model)
        )
        buffer = re.compile(f"({re.escape(prefix)})?({family.buffers})")
        extra = {name for name in self._file_of if not buffer.fullmatch(name)}
        # A tied head may be stored once more.
        extra -= {*found.by_name, *self._ties(family)}
        missing = found.by_name.keys() - self._file_of.keys()
        for names, what in ((missing, "missing"), (extra, f"not known in {family.model_type}")):
            if names:
                first, count = min(names), len(names)
                more = f", and {count - 1} more" if count > 1 else ""
                raise UserError(f"{self.path}: tensor {first} is {what}{more}")
        return found

    def _find_copies(self, family: Family) -> dict[str, Region]:
        """By logical tensor, where it is stored once more: a tied head beside the embedding."""
        keys = {key: name for name, key in self._ties(family).items() if name in self._file_of}
        regions = [region for region in self._regions.by_name.values() if region.key in keys]
        return {region.key: replace(region, name=keys[region.key]) for region in regions}

    def _ties(self, family: Family) -> dict[str, str]:
        """By the name of a tied head, the key of what it is tied to."""
        tied = {tensor.tied_as: key for key, tensor in self.tensors.items() if tensor.tied_as}
        return {name: tied[key] for name, (key, _) in family.rows.items() if key in tied}

    def _check_tensors(self) -> dict[str, torch.dtype]:
        """Shapes and data types of all that is stored; the data type of each logical tensor."""
        dtypes: dict[str, list[torch.dtype]] = {key: [] for key in self.tensors}
        by_file: dict[Path, list[Region]] = {}
        for region in (*self._regions.by_name.values(), *self._copies.values()):
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
                    f"{self._file_of[name]}: {name} differs from {original}, although "
                    f"{CONFIG} says tie_word_embeddings"
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
                "train": {"seq_length": model.max_position_embeddings, "precision": precision},
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
        return {}
