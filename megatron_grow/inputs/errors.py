"""The one exception for a user's mistake."""

from __future__ import annotations

import re


class UserError(Exception):
    """Bad input: one line that names the field or file, its value, and what would be accepted.

    The entry scripts print the line without a stack trace and exit with code 2. Line breaks, other
    characters that do not print, and the middle of an endless value are left out of it.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


_LONGEST = 2000
"""Letters of a message."""


class AgreedError(UserError):
    """One that every rank of the job raises, in the same words; rank 0 alone prints it."""


def one_line(error: BaseException) -> str | None:
    """What a user can mend, said in one line: a mistake, or a file system that refused.

    Returns:
        None for everything else, which is a fault of the program or the machine.
    """
    cause: BaseException | None = error
    while cause is not None:
        refused = isinstance(cause, OSError) and not isinstance(cause, _NO_FILES)
        # torch's writer of archives says in its own words that a file could not be written.
        torn = isinstance(cause, RuntimeError) and "PytorchStreamWriter" in str(cause)
        if refused or torn or isinstance(cause, UserError):
            return " ".join(str(cause).split())
        cause = cause.__cause__
    return None


_NO_FILES = (ConnectionError, TimeoutError, ChildProcessError, ProcessLookupError)
"""Errors of the operating system that are not about files."""

_MISMATCH = re.compile(
    r'Parser key "(?P<field>[^"]+)": '
    r"(Expected an? (?P<kind>.+)\. Got value: ?(?P<value>.*)"
    r"|Does not validate against any of the Union subtypes Subtypes: \[(?P<kinds>.*?)\] Errors: .*"
    r"Given value: ?(?P<given>.*))"
)
_TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")


def parse_error(error: Exception, where: str = "") -> UserError:
    """What jsonargparse says of a value, in one line that begins with the field.

    Args:
        error: the library's.
        where: in what the field stands, if not at the top.
    """
    text = _TYPE.sub(r"\1", " ".join(str(error).split())).replace("NoneType", "null")
    text = text.replace("dict[str, typing.Any]", "dict")
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    found = _MISMATCH.fullmatch(text)
    if found is None:
        text = re.sub(r'Parser key "([^"]+)": ', r"\1: ", text)
        return UserError(f"{where}: {text}" if where else text)
    field = f"{where}.{found['field']}" if where else found["field"]
    kinds = found["kind"] or found["kinds"]
    return UserError(
        f"{field}={found['value'] or found['given'] or ''} must be "
        + (f"one of {kinds}" if "," in kinds else kinds)
    )
