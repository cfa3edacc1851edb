"""Where a directory holds the tensors of a model: every stored one is accounted for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_grow.checkpoint.huggingface.names import copies, regions
from megatron_grow.checkpoint.regions import Region, Regions
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.huggingface import Family


@dataclass(frozen=True)
class Places:
    """Where a model's tensors are, under the names that the files have."""

    regions: Regions
    copies: Mapping[str, list[Region]]
    """By the name of a stored tensor, what is stored besides and must be the same."""
    left_out: str
    """For people: weights of heads that the model's class does not have; empty: none."""


def todays_names(family: Family, stored: Collection[str], path: Path) -> dict[str, str]:
    """By the names that ``transformers`` writes today, those of the stored tensors.

    Raises:
        UserError: one tensor of ``path`` is stored under an old name and today's.
    """
    found: dict[str, str] = {}
    for name in sorted(stored):
        old = next((end for end in family.old_names if name.endswith(end)), "")
        today = name.removesuffix(old) + family.old_names.get(old, "")
        if found.setdefault(today, name) != name:
            raise UserError(f"{path}: {found[today]} and {name} are one tensor")
    return found


def places(family: Family, model: ModelConfig, named: Mapping[str, str], path: Path) -> Places:
    """Where all is stored in the directory ``path``.

    Args:
        family: of the model.
        model: the shape.
        named: as :func:`todays_names` gives it.
        path: for messages.

    Raises:
        UserError: a tensor is missing, or not known.
    """
    prefix, again, stored = family.prefix, copies(family, model), set(named.values())
    bare = not any(name.startswith(prefix) for name in named)

    def here(name: str) -> str:
        name = name.removeprefix(prefix) if bare else name
        return named.get(name, name)

    found = Regions(
        replace(region, name=here(region.name))
        for region in regions(family, model)
        if region.name not in again
    )
    besides: dict[str, list[Region]] = defaultdict(list)
    for name, original in again.items():
        if here(name) in stored and (first := found.by_name.get(here(original))):
            besides[first.name].append(replace(first, name=here(name)))
    extra = stored - found.by_name.keys() - {r.name for rest in besides.values() for r in rest}
    extra -= _matching(extra, prefix, family.buffers)
    unused = _matching(extra, prefix, family.unused)
    missing = found.by_name.keys() - stored
    for names, what in (
        (missing, "missing"),
        (extra - unused, f"not known in {family.model_type}"),
    ):
        if names:
            raise UserError(f"{path}: tensor {_told(names, what)}")
    left_out = f"tensor {_told(unused, 'left out')}: {family.class_of(model)} has none"
    return Places(found, besides, left_out if unused else "")


def _matching(names: Iterable[str], prefix: str, pattern: str) -> set[str]:
    """Those of ``names`` that are of a pattern, with the family's prefix or without."""
    whole = re.compile(f"({re.escape(prefix)})?({pattern})")
    return {name for name in names if whole.fullmatch(name)}


def _told(names: Collection[str], what: str) -> str:
    """The first of ``names``, what it is, and how many others are that."""
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{min(names, default='')} is {what}{more}"
