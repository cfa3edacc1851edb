"""What the pickles of checkpoints may refer to: nothing that runs code.

A pickle names classes and functions, and unpickling calls them. Each kind of file has a list here
of all that a true one names, and of what takes its place; nothing is ever imported because a file
asks for it.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import filesystem, metadata

Names = Mapping[str, Mapping[str, Any]]
"""What stands for a name, by module and name."""


@dataclass(frozen=True)
class StoredTensor:
    """What a pickled tensor says of itself; its values lie in another member of the archive."""

    dtype: torch.dtype
    member: str
    """Name of the storage."""
    first: int
    """Elements of the storage before the tensor's own."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def row_major(self) -> bool:
        """Whether the values lie in order and without gaps."""
        expected, step = [], 1
        for size in reversed(self.shape):
            expected.append(step)
            step *= max(size, 1)
        return self.stride == tuple(reversed(expected))


class Restricted(pickle.Unpickler):
    """Loads what refers to nothing but some names.

    Raises:
        pickle.UnpicklingError: it refers to another; the message says to which.
    """

    def __init__(self, file: BinaryIO, names: Names) -> None:
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        try:
            return self._names[module][name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which is not allowed"
            ) from None

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        """The type and the name of a storage."""
        _, dtype, member, *_ = pid
        return dtype, member


class _Inert:
    """Takes the place of what is of no use here, and does nothing with what it is made from."""

    def __new__(cls, *args: Any, **fields: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **fields: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Foreign(dict):
    """Every name of a module, each inert."""

    def __missing__(self, name: str) -> type[_Inert]:
        return _Inert


class _TrainingState(dict):
    """Modules that the arguments and the state of Megatron-LM refer to."""

    def __missing__(self, module: str) -> Mapping[str, Any]:
        if module.split(".")[0] == "megatron":
            return _Foreign()
        raise KeyError(module)


def _stored(storage: tuple, first: int, shape: tuple, stride: tuple, *_: Any) -> StoredTensor:
    dtype, member = storage
    return StoredTensor(dtype, member, first, tuple(shape), tuple(stride))


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = {name: it for name in dir(torch) if isinstance(it := getattr(torch, name), torch.dtype)}

TENSOR: Names = {
    "collections": {"OrderedDict": OrderedDict},
    "torch": _STORAGES,
    "torch._utils": {"_rebuild_tensor_v2": _stored},
}
"""One plain tensor, which becomes a :class:`StoredTensor`."""

TABLE: Names = {
    "collections": {"OrderedDict": OrderedDict},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata": metadata.Metadata},
    "pathlib": {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath},
    "pathlib._local": {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath},
    "torch": {"Size": torch.Size, **_DTYPES},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo": filesystem._StorageInfo},
    "torch.distributed.checkpoint.metadata": {
        name: getattr(metadata, name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    },
    # How Megatron-LM's ranks divided the writing among them: of no use to a reader.
    "torch.distributed.checkpoint.planner": dict.fromkeys(
        ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"), _Inert
    ),
    "torch.serialization": {"_get_layout": torch.serialization._get_layout},
}
"""The table of chunks of a ``torch_dist`` checkpoint."""

# numpy's and Python's generators, enumerations, signals and FP8 scales: nothing that is read.
_UNREAD = {
    "_codecs": ("encode",),
    "_io": ("BytesIO",),
    "io": ("BytesIO",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.dtypes": ("UInt32DType", "Float64DType"),
    "signal": ("Signals",),
}
_BUILTINS = {"dict": dict, "set": set}

TRAINING: Names = _TrainingState(
    {
        **{module: dict.fromkeys(names, _Inert) for module, names in _UNREAD.items()},
        "__builtin__": _BUILTINS,  # the name that torch.save's protocol gives it
        "argparse": {"Namespace": Namespace},
        "builtins": _BUILTINS,
        "collections": {"OrderedDict": OrderedDict, "defaultdict": defaultdict},
        "pathlib": TABLE["pathlib"],
        "torch": {"Size": torch.Size, "device": _Inert, **_DTYPES, **_STORAGES},
        "torch._utils": {
            "_rebuild_parameter": lambda data, *_: data,
            "_rebuild_tensor_v2": _stored,
        },
        "types": {"SimpleNamespace": SimpleNamespace},
    }
)
"""Megatron-LM's ``common.pt`` and ``model_optim_rng.pt``: arguments, progress and tensors."""
