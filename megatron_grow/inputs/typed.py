"""Values of a run file, checked against the types that a dataclass gives its fields."""

from __future__ import annotations

from copy import copy
from dataclasses import fields, make_dataclass
from functools import cache
from typing import Any, get_type_hints

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
    hints = get_type_hints(kind)
    # The library would import all that the module of ``kind`` does under TYPE_CHECKING, to resolve
    # what is annotated there; of a class whose annotations are types it asks for no module.
    entries = [(option.name, hints[option.name], copy(option)) for option in fields(kind)]
    plain = make_dataclass(kind.__name__, entries, kw_only=True)
    parser.add_class_arguments(plain, as_group=False, skip=set(without))
    return parser
