"""Which files of the input are read, and which are left out and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from megatron_grow.data.preprocess.compression import DAMAGE, UnreadableError
from megatron_grow.data.preprocess.sniff import Content, Format, sniff
from megatron_grow.inputs.errors import UserError


@dataclass(frozen=True)
class InputFile:
    """A file that is read."""

    path: Path
    format: Format
    size: int
    """Bytes on disk."""
    modified: int
    """Nanoseconds since 1970."""

    @property
    def reason(self) -> str:
        """What it is read as."""
        return self.format.value


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not."""

    path: Path
    reason: str
    size: int
    """Bytes on disk; of a folder, 0."""


@dataclass
class Inputs:
    """The input: every file that was named or lies in a directory that was."""

    files: list[InputFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes on disk of the files that are read."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class InputOptions:
    """What to take of directories, and what of bad files."""

    json_key: str
    """Key or column of the text."""
    globs: Sequence[str]
    """Patterns of file names taken from a directory."""
    exclude: Sequence[str]
    """Patterns of names of files and folders left out of a directory."""
    skip_bad: bool
    """Leave damaged files out."""
    outputs: Sequence[Path]
    """What the command writes, which is never its input."""

    def writes(self, path: Path) -> bool:
        """Whether ``path`` is what the command writes, by whatever name."""
        return any(
            output.name == path.name and os.path.realpath(output) == os.path.realpath(path)
            for output in self.outputs
        )


def find_inputs(names: Sequence[str], options: InputOptions) -> Inputs:
    """The files that ``names`` name: themselves, or those in a directory, recursively.

    Names keep their order; a directory's files are sorted by path, so the order of documents does
    not depend on the file system. A file is taken once, whatever it is called.

    Raises:
        UserError: an input that is missing or of no kind that can be read; nothing to read.
    """
    inputs = Inputs()
    seen: set[tuple[int, int]] = set()
    for name in names:
        path = Path(name)
        if path.is_dir():
            for file, reason in _walk(path, Path(), options, set()):
                _add(inputs, file, reason, options, seen, named=False)
        elif options.writes(path):
            raise UserError(f"input={name} is what this command writes")
        elif path.is_file():
            _add(inputs, path, None, options, seen, named=True)
        elif path.exists():
            raise UserError(f"input={name} is neither a regular file nor a directory")
        else:
            raise UserError(f"input={name} does not exist")
    if not inputs.files:
        reasons = sorted({left.reason for left in inputs.left_out})
        raise UserError(
            f"input={' '.join(names)}: no file to read; "
            f"left out: {len(inputs.left_out)} ({', '.join(reasons) or 'none was there'})"
        )
    return inputs


def _walk(
    root: Path, folder: Path, options: InputOptions, parents: set[tuple[int, int]]
) -> Iterator[tuple[Path, str | None]]:
    """What lies in a folder of ``root``, and why it is left out if it is; links are followed."""
    here = root / folder
    status = here.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        return  # a link back to a folder above
    try:
        names = sorted(os.listdir(here))
    except OSError as error:
        raise UserError(f"input={here}: cannot be read: {error.strerror}") from error
    for name in names:
        path = here / name
        if name.startswith("."):
            yield path, "hidden"
        elif any(fnmatch(name, pattern) for pattern in options.exclude):
            yield path, "by --exclude"
        elif options.writes(path):
            yield path, "output of this command"
        elif path.is_dir():
            yield from _walk(root, folder / name, options, parents | {identity})
        elif not path.is_file():
            yield path, "no regular file"
        elif not any((folder / name).match(pattern) for pattern in options.globs):
            yield path, "by --glob"
        else:
            yield path, None


def _add(
    inputs: Inputs,
    path: Path,
    reason: str | None,
    options: InputOptions,
    seen: set[tuple[int, int]],
    named: bool,
) -> None:
    """Take a file, or leave it out for ``reason`` or for what it holds."""
    try:
        status = path.stat()
    except FileNotFoundError:  # a broken link
        status = path.lstat()
    content = Content(Format.TEXT)
    if reason is None:
        identity = (status.st_dev, status.st_ino)
        reason = "named twice" if identity in seen else "empty" if not status.st_size else None
        seen.add(identity)
    if reason is None:
        content, reason = _look(path, options, named)
    if reason is None:
        inputs.files.append(InputFile(path, content.format, status.st_size, status.st_mtime_ns))
    else:
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        inputs.left_out.append(LeftOut(path, reason, size))


def _look(path: Path, options: InputOptions, named: bool) -> tuple[Content, str | None]:
    """What a file holds, and why it is left out if it is."""
    try:
        content = sniff(path, options.skip_bad)
    except UnreadableError as error:
        if named:
            raise UserError(f"{path}: cannot be read: {error}") from error
        return Content(Format.TEXT), str(error)
    except DAMAGE as error:
        if not options.skip_bad:
            raise UserError(f"{path}: cannot be read: {error}") from error
        return Content(Format.TEXT), "damaged"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content.keys is None or options.json_key in content.keys:
        return content, None
    if content.format is Format.JSON and not named:
        return content, f"JSON without {options.json_key!r}"
    if content.format is Format.PARQUET and options.skip_bad:
        return content, f"no column of text {options.json_key!r}"
    if options.skip_bad:
        return content, None
    noun = ("column of text", "columns of text") if content.format is Format.PARQUET else _KEY
    raise UserError(f"{path}: {no_key(options.json_key, content.keys, noun)}")


_KEY = ("key", "keys")


def no_key(key: str, keys: Collection[str], noun: tuple[str, str] = _KEY) -> str:
    """Says that ``key`` is not among ``keys``; ``noun`` names one of them, and several."""
    shown = ", ".join([*keys][:10]) + (", ..." if len(keys) > 10 else "")
    one, several = noun
    return f"no {one} {key!r}; its {several} are {' '.join(shown.split()) or 'none'}"
