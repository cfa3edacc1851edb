"""Values of a run file, checked against the types that a dataclass gives its fields."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from megatron_grow.config.errors import parse_error


def typed(kind: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """All fields of ``kind``: those in ``values``, converted to their types, and the defaults.

    Raises:
        UserError: a value of another type; the message begins with ``where``.
    """
    try:
        return vars(_parser(kind).parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        raise parse_error(error, where) from None


@cache
def _parser(kind: type) -> ArgumentParser:
    """Kept: a stage needs several, and one takes over ten milliseconds to make."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False)
    return parser
