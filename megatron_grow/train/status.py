"""How a run stands, for scripts: a launcher turns every exit code but 0 into 1."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from megatron_grow.checkpoint.lock import Holder, check_held
from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError, one_line

FILE_NAME = "status.json"


def is_done(output_dir: str | Path) -> bool:
    """Whether the run that wrote to ``output_dir`` has come to its end."""
    path = Path(output_dir) / FILE_NAME
    return path.is_file() and json.loads(path.read_text())["status"] == ExitCode.DONE.name.lower()


class RunStatus:
    """Keeps ``output_dir/status.json``, as a context manager around a run; for one rank only.

    Its ``status`` is ``running`` until the run ends, then the name of its exit code. A killed run
    leaves ``running``, and one whose directory another run has taken over leaves that one's.
    """

    def __init__(self, output_dir: str | Path, holder: Holder) -> None:
        """Take a directory, and as whom it is held."""
        self._path, self._holder = Path(output_dir) / FILE_NAME, holder
        self.code = ExitCode.DONE
        """How the run ends, if without an error."""

    def __enter__(self) -> RunStatus:
        self._write("running", None, "")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            from megatron_grow.train.finite import DivergedError  # tools ask is_done without torch

            line = one_line(error)
            self.code = ExitCode.FAILED if line is None else ExitCode.MISTAKE
            if isinstance(error, DivergedError):
                self.code = ExitCode.DIVERGED
        # A full disk, or a directory that is another's now; what ended the run is said elsewhere.
        with contextlib.suppress(OSError, UserError):
            check_held(self._path.parent, self._holder)
            self._write(self.code.name.lower(), self.code, str(error or ""))

    def _write(self, status: str, exit_code: int | None, message: str) -> None:
        content = {"status": status, "exit_code": exit_code, "message": message}
        write_whole(self._path, [json.dumps(content).encode() + b"\n"])
