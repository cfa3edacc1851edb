"""YAML as a run file needs it: a key that stands twice is a mistake, not the last one's victory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megatron_grow.inputs.errors import UserError

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path, named: str) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        named: begins the message of an error, for example ``--config``.

    Raises:
        UserError: not there, not readable, not YAML, or with a key that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{named} {path} is not there") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{named} {path} cannot be read: {reason}") from None
    return parse_yaml(text, f"{named} {path}")


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds.

    Raises:
        UserError: not YAML, or a key that stands twice; the message begins with ``where``.
    """
    try:
        _refuse_repeats(yaml.compose(text, Loader=_Loader), where, set())
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark)
        raise UserError(f"{where} is not YAML{place}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where} is not YAML: {error}") from None


def _refuse_repeats(node: yaml.Node | None, where: str, seen: set[int]) -> None:
    if node is None or id(node) in seen:  # an anchor may stand in many places, or in itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_repeats(entry, where, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise UserError(
                        f"{where}{_place(key.start_mark)}: the key {key.value!r} stands twice; "
                        "leave one of them out"
                    )
                keys.add(key.value)
            _refuse_repeats(value, where, seen)


def _place(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
