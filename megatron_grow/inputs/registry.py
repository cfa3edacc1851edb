"""Things that a run file names: built in ones by their name, all others by import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Generic, TypeVar

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.typed import typed

Kind = TypeVar("Kind")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Registry(Generic[Kind]):
    """Classes of one kind; importing a table of them imports none of them."""

    what: str
    """For messages, with its article: ``an operator``."""
    word: str
    """The key that names one beside its options: ``operator`` in ``{operator: NAME, ...}``."""
    kind: type
    """What each of them is a subclass of."""
    builtin: Mapping[str, str]
    """By name, the import path: ``package.module:Class``."""

    def find(self, spec: Any, where: str) -> type[Kind]:
        """The class that ``NAME`` or ``{<word>: NAME, ...}`` asks for.

        Args:
            spec: as a run file has it; a name is one of the table, or an import path.
            where: begins the message of an error.

        Raises:
            UserError: neither.
        """
        name = spec
        if isinstance(spec, Mapping):
            name, where = spec.get(self.word), f"{where}.{self.word}"
        if isinstance(name, str) and ":" in name:
            return self._imported(name, where)
        if not isinstance(name, str) or name not in self.builtin:
            raise UserError(
                f"{where}={name!r} is not {self.what}; known are {', '.join(self.builtin)}, or "
                "an import path (package.module:Class)"
            )
        return self._imported(self.builtin[name], where)

    def make(self, spec: str | Mapping[str, Any], where: str, **given: Any) -> Kind:
        """One that ``NAME`` or ``{<word>: NAME, ...options}`` asks for.

        The class is a dataclass, whose fields are its options.

        Args:
            spec: as a run file has it.
            where: begins the message of an error.
            given: fields that no run file sets, of any type.

        Raises:
            UserError: an unknown name, or an option that is unknown, of another type or out of
                range.
        """
        kind = self.find(spec, where)
        options = {self.word: spec} if isinstance(spec, str) else dict(spec)
        return configured(kind, options.pop(self.word), options, where, **given)

    def _imported(self, path: str, where: str) -> type[Kind]:
        module, _, name = path.partition(":")
        try:
            found = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{where}={path} cannot be imported: {error}; install it or set PYTHONPATH"
            ) from None
        except Exception as error:  # whatever the module does while it is imported
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{where}={path} cannot be imported: {what}") from None
        if not (inspect.isclass(found) and issubclass(found, self.kind)):
            base = f"{self.kind.__module__}.{self.kind.__qualname__}"
            raise UserError(f"{where}={path} is not {self.what}: a subclass of {base}")
        named = [n for n, hint in self.kind.__annotations__.items() if hint.startswith("ClassVar")]
        lacks = set(getattr(found, "__abstractmethods__", ()))
        lacks |= {name for name in named if not hasattr(found, name)}
        if lacks:
            raise UserError(f"{where}={path} does not say its {', '.join(sorted(lacks))}")
        return found  # type: ignore[return-value]


def configured(
    kind: type[Made], name: Any, options: Mapping[str, Any], where: str, /, **given: Any
) -> Made:
    """A ``kind``, a dataclass called ``name``, with these options; as :meth:`Registry.make`."""
    names = {field.name for field in fields(kind) if field.init} - set(given)  # type: ignore[arg-type]
    for option in options:
        if option not in names:
            raise UserError(
                f"{where}.{option} is not an option of {name}; "
                f"known are {', '.join(sorted(names)) or 'none'}"
            )
    values = typed(kind, dict(options), where, frozenset(given))
    try:
        return kind(**values, **given)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
