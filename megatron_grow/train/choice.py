"""Which checkpoint a run begins from, by what its directories hold; ``docs/checkpoints.md``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_grow.checkpoint.formats import Formats, identity, other
from megatron_grow.checkpoint.layout import replaced, step_dir
from megatron_grow.checkpoint.open import find, open_to_resume, record_of
from megatron_grow.checkpoint.record import Beginning, Record
from megatron_grow.checkpoint.root import is_complete, latest, listed, locate, saved_steps
from megatron_grow.config.run import RunConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.train.identity import Identity, jobs
from megatron_grow.train.rows import rows_of


@dataclass(frozen=True)
class Choice:
    """Where a run begins; found by rank 0, the same on all."""

    path: Path | None
    """A checkpoint; None: the run begins from nothing."""
    step: int = 0
    """Of that checkpoint."""
    grows: bool = False
    """Whether the first stage grows out of it; else its training goes on."""
    own: bool = False
    """Whether it is one of this run's."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    begun_from: tuple[Beginning, ...] = ()
    later: tuple[int, ...] = ()
    """Steps of own checkpoints that come after it, and are set aside."""
    clears: bool = False
    """Whether all that the directories hold is set aside."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


def choose(
    config: RunConfig, *, grows: bool, environment: Mapping[str, str] | None = None
) -> Choice:
    """Look what is there, and write nothing.

    Args:
        config: the run.
        grows: whether its first stage has a ``grow:``.
        environment: of this rank; absent: that of the process.

    Raises:
        UserError: nothing usable where the run file points, or a run in the way.
    """
    root, load = config.checkpoint_dir, config.checkpoint.load
    known = Identity.of(Path(config.run.output_dir))
    own_step = load is not None and _is_own(Path(load), root)
    overwrite = config.run.overwrite
    environment = os.environ if environment is None else environment
    if known and set(known.jobs) & set(jobs(environment, repeated=True)):
        # The first attempt of this job did what was asked for; this one goes on with its work.
        overwrite = False
        if load is None or own_step:
            load, own_step = "auto", False
    if not overwrite:
        rows_of(config.run.output_dir)  # which are kept: they can be read
    if own_step and load is not None:
        return _go_back(Path(load), root, known, again=overwrite)
    if overwrite:
        return _begin(config, grows, clears=_holds(config) is not None)
    if load is None:
        if held := _holds(config):
            raise UserError(
                f"{held} of a run already: go on with it with "
                "--checkpoint.load auto, leave it alone with another --run.output_dir, or set it "
                "aside and begin anew with --run.overwrite true"
            )
        return _begin(config, grows)
    newest = latest(root)
    if newest is None:
        _check_nothing_lost(config)
        return _begin(config, grows)
    with advising(newest, root):
        record = record_of(newest)
    for name, named in (("load", load), ("initial", config.checkpoint.initial)):
        if named and named != "auto":
            begins = f"checkpoint.{name}="
            _check_descends(record, root, begins, Path(named), other_formats(config))
    return _go_on(newest, record, root, known)


def other_formats(config: RunConfig) -> Formats:
    """What the run may begin from, besides the formats that are built in."""
    return other(config.checkpoint.source_format, "checkpoint.source_format")


def _readable(path: Path) -> Record | None:
    try:
        return record_of(path)
    except UserError:
        return None


def latest_or_none(root: Path) -> Path | None:
    """The newest checkpoint; None also where the tracker file is lost or wrong."""
    try:
        return latest(root)
    except UserError:
        return None


@contextmanager
def advising(path: Path, root: Path | None) -> Iterator[None]:
    """Say, where the checkpoint ``path`` is damaged, which of ``root`` may be taken in its place.

    Raises:
        UserError: that of the block, with the advice.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {_newest_whole(root, path)}" if root else str(error)) from None


def _newest_whole(root: Path, but: Path) -> str:
    for step in reversed(saved_steps(root)):
        path = step_dir(root, step)
        try:
            if path != but:
                open_to_resume(path)
                return (
                    f"the newest whole one is step {step}: --checkpoint.load {path} goes back to it"
                )
        except UserError:
            continue
    return f"no other checkpoint in {root} is whole"


def _begin(config: RunConfig, grows: bool, clears: bool = False) -> Choice:
    root, initial, load = (
        config.checkpoint_dir,
        config.checkpoint.initial,
        config.checkpoint.load_directory,
    )
    if initial and load:
        raise UserError(
            f"checkpoint.load={load} is no checkpoint of this run, which begins from "
            f"checkpoint.initial={initial}: leave one of them out"
        )
    if not initial and not load:
        if grows:
            raise UserError(
                "stages[0].grow has nothing to grow from: checkpoint.initial must name a checkpoint"
            )
        return Choice(None, clears=clears)
    named = "checkpoint.initial=" if initial else "checkpoint.load="
    directory = Path(initial or load or "")
    if _is_own(directory, root):
        raise UserError(
            f"{named}{directory} is in {root}, where this run's own checkpoints are; to go back to "
            f"one of them, name it by checkpoint.load"
        )
    kind, path = find(directory, named, other_formats(config))
    grows = grows or bool(initial)
    if not grows and not kind.resumes:
        raise UserError(
            f"{named}{directory} holds weights alone; to begin with them, name it by "
            "checkpoint.initial, with stages: [{grow: {optimizer_state: reset}}]"
        )
    beginning = Beginning(str(directory.resolve()), identity(path))
    return Choice(path, grows=grows, begun_from=(beginning,), clears=clears)


def _go_on(path: Path, record: Record, root: Path, known: Identity | None, *notes: str) -> Choice:
    if path.name != "release" and path not in (
        step_dir(root, record.step),
        replaced(step_dir(root, record.step)),
    ):
        raise UserError(f"{path} holds step {record.step}, which its name does not say")
    if known and record.run_id and record.run_id != known.run_id:
        raise UserError(
            f"{path} is of another run ({record.run_id}) than the one in this run's output_dir "
            f"({known.run_id}); to begin from it, copy it elsewhere and name it by "
            "checkpoint.initial"
        )
    later = tuple(step for step in saved_steps(root) if step > record.step)
    return Choice(
        path,
        record.step,
        own=True,
        run_id=record.run_id or (known.run_id if known else secrets.token_hex(8)),
        begun_from=tuple(record.begun_from),
        later=later,
        notes=notes,
    )


def _go_back(named: Path, root: Path, known: Identity | None, *, again: bool) -> Choice:
    if named.resolve() == root.resolve():
        found = locate(root, "checkpoint.load=")
        with advising(found, root):
            record = record_of(found)
        return _go_on(found, record, root, known)
    path = root / named.resolve().name
    if not is_complete(path):
        raise UserError(
            f"checkpoint.load={named} is no complete checkpoint; complete ones: "
            f"{listed(saved_steps(root))}"
        )
    beginning = Beginning(str(path.resolve()), identity(path))
    newest = latest_or_none(root)
    last = _readable(newest) if newest is not None and newest != path else None
    if newest is not None and last and last.begun_from[-1:] == [beginning] and not again:
        note = (
            f"the run began from {path} before, and goes on from step {last.step}; to go back "
            "again: --run.overwrite true"
        )
        return _go_on(newest, last, root, known, note)
    choice = _go_on(path, record_of(path), root, known)
    if choice.begun_from[-1:] == (beginning,):
        return choice
    return replace(choice, begun_from=(*choice.begun_from, beginning))


def _is_own(path: Path, root: Path) -> bool:
    """Whether ``path`` is the directory of the run's checkpoints, or one of them."""
    path, root = path.resolve(), root.resolve()
    return path == root or (path.parent == root and path.name.startswith("iter_"))


def _check_descends(record: Record, root: Path, begins: str, named: Path, also: Formats) -> None:
    """Raise :class:`UserError` unless the run in ``root`` began from what is at ``named``.

    Its message names that as ``begins`` does, for example ``checkpoint.load=``.
    """
    if str(named.resolve()) in {beginning.named for beginning in record.begun_from}:
        return
    holds = f"{root} holds a run at step {record.step}"
    go_on = f"leave {begins.rstrip('=')} out and go on with that run with --checkpoint.load auto"
    try:
        found = identity(find(named, begins, also)[1])
    except UserError as error:
        raise UserError(f"{error}; {holds}: {go_on}") from None
    if found not in {beginning.identity for beginning in record.begun_from}:
        raise UserError(
            f"{holds} that did not begin from {begins}{named}: {go_on}, or begin from {named} in "
            "another --run.output_dir, or here with --run.overwrite true, which sets that run aside"
        )


def _holds(config: RunConfig) -> str | None:
    """What a run has left in the directories; None where there is nothing."""
    steps = saved_steps(config.checkpoint_dir)
    if steps:
        return f"{config.checkpoint_dir} holds checkpoints up to step {steps[-1]}"
    rows = rows_of(config.run.output_dir)
    return f"{config.run.output_dir} holds metrics up to step {rows[-1]['step']}" if rows else None


def _check_nothing_lost(config: RunConfig) -> None:
    """Refuse to begin anew where metrics tell of checkpoints that are gone."""
    rows, interval = rows_of(config.run.output_dir), config.checkpoint.save_interval
    if not rows or not interval:
        return
    first, last = rows[0]["step"], rows[-1]["step"]
    saved = (last - 1) // interval * interval
    if config.checkpoint.async_save:  # one may have been under way
        saved -= interval
    if saved >= first:
        raise UserError(
            f"{config.checkpoint_dir} holds no checkpoint, but the metrics in "
            f"{config.run.output_dir} go on to step {last}, after the one of step {saved}: restore "
            "it, or begin anew with --checkpoint.load null --run.overwrite true"
        )
