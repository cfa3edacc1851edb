"""What a field may hold: its type and its range, checked wherever its section is made."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from megatron_grow.inputs.errors import UserError

LARGEST = 2**31 - 1
"""Of every number whose range does not say otherwise."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number; what else a field may hold has none."""

    least: float | None = None
    above: float | None = None
    most: float = LARGEST
    below: float | None = None

    def wrong(self, value: Any) -> str | None:
        """What ``value`` must be to lie within; None where it does."""
        if not isinstance(value, (int, float)):
            return None
        if self.least is not None and value < self.least:
            return f"at least {self.least:g}"
        if self.above is not None and value <= self.above:
            return f"more than {self.above:g}"
        if value > self.most:
            return f"at most {self.most:.12g}"
        if self.below is not None and value >= self.below:
            return f"less than {self.below:g}"
        return None


@dataclass(frozen=True)
class AsPath:
    """A text that may be the path of something."""

    def wrong(self, value: str) -> str | None:
        """What ``value`` must be; None where it is."""
        if not value.strip():
            return "a path, not empty"
        if max(len(name.encode()) for name in value.split("/")) > 255:
            return "a path of names of at most 255 bytes"
        return None


Count = Annotated[int, Range(least=1)]
CountOrZero = Annotated[int, Range(least=0)]
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]
"""What numpy's and torch's generators both take."""
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
Minutes = Annotated[float, Range(least=0.1, most=7 * 24 * 60)]
ShareBelowOne = Annotated[float, Range(least=0, below=1)]
PathText = Annotated[str, AsPath()]


def check_fields(section: Any, prefix: str = "") -> None:
    """Refuse a dataclass of which a field is of another type than it says, or out of its range.

    Args:
        section: an instance; what its dictionaries hold is not looked at.
        prefix: begins the field's name in the message, for example ``train.``.

    Raises:
        UserError: the field, its value, and what it must be.
    """
    for name, hint in _hints(section.__class__).items():
        value = getattr(section, name)
        if reason := wrong(value, hint):
            raise UserError(f"{prefix}{name}={shown(value)} must be {reason}")


def shown(value: Any) -> str:
    """``value`` as a run file has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"


@cache
def _hints(section: type) -> dict[str, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in fields(section)}


def wrong(value: Any, hint: Any) -> str | None:
    """What ``value`` must be to fit ``hint``; None where it fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, *bounds = arguments
        return wrong(value, kind) or next(filter(None, (b.wrong(value) for b in bounds)), None)
    if origin in (Union, types.UnionType):
        answers = [wrong(value, kind) for kind in arguments if kind is not type(None)]
        if (value is None and type(None) in arguments) or None in answers:
            return None
        return " or ".join(dict.fromkeys(filter(None, answers)))
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(map(repr, arguments))}"
    if hint is Any:
        return None
    if origin is list and isinstance(value, list):
        answers = [wrong(entry, *arguments) for entry in value]
        return next((f"list of which each entry is {reason}" for reason in answers if reason), None)
    return _wrong_kind(value, origin or hint)


def _wrong_kind(value: Any, kind: type) -> str | None:
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return kind.__name__
    if kind is float:
        return None if math.isfinite(value) else "a finite number"
    if kind is str and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        return "a text without NUL characters and lone surrogates"
    return None
