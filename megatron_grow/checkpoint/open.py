"""Open a checkpoint of whatever format."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.formats import Formats, format_of
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.root import locate
from megatron_grow.inputs.errors import UserError


def find(path: Path, named: str = "", also: Formats = ()) -> tuple[type[Format], Path]:
    """The directory that :func:`open_reader` opens, and its format.

    Args:
        path: as there.
        named: as there.
        also: as there.

    Raises:
        UserError: nothing there is a checkpoint.
    """
    if kind := format_of(path, also):
        return kind, path
    found = locate(path, named, also)
    kind = format_of(found, also)
    assert kind is not None  # it is complete
    return kind, found


def open_reader(path: Path, named: str = "", *, also: Formats = (), once: bool = False) -> Reader:
    """The checkpoint at ``path``: a step's directory, a root with a tracker file, or a model.

    Args:
        path: a directory.
        named: begins the message of an error, for example ``checkpoint.load=``.
        also: formats to recognise before those that are built in.
        once: whether its values are read only once, so that the page cache need not keep them.

    Raises:
        UserError: nothing there is a checkpoint, or it is damaged.
    """
    kind, found = find(path, named, also)
    return kind.open(found, once=once)


def record_of(path: Path) -> Record:
    """Where the training stands that the checkpoint in the directory ``path`` holds.

    Raises:
        UserError: nothing there is a checkpoint, or it is damaged.
    """
    kind, found = find(path)
    return kind.record(found)


def open_to_resume(path: Path, also: Formats = ()) -> Reader:
    """The checkpoint in the directory ``path``, from which a run goes on; ``also`` as above.

    Raises:
        UserError: it is of another kind, or damaged.
    """
    kind, found = find(path, also=also)
    if not kind.resumes:
        raise UserError(f"{found} is of the {kind.title} format, from which no run goes on")
    return kind.open(found)
