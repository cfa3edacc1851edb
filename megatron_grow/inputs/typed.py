"""Values of a run file, checked against the types that a dataclass gives its fields."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from megatron_grow.inputs.errors import parse_error


def typed(
    kind: type, values: dict[str, Any], where: str, without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """All fields of ``kind`` but those ``without``: of ``values``, converted, and the defaults.

    Raises:
        UserError: a value of another type; the message begins with ``where``.
    """
    try:
        return vars(_parser(kind, without).parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        raise parse_error(error, where) from None


@cache
def _parser(kind: type, without: frozenset[str]) -> ArgumentParser:
    """Kept: a stage needs several, and one takes over ten milliseconds to make."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False, skip=set(without))
    return parser
