"""What a run begins from: each cell of the table in docs/checkpoints.md."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint.formats import identity
from megatron_grow.checkpoint.layout import PENDING, RECORD, TRACKER, replaced, step_dir
from megatron_grow.checkpoint.record import Beginning, Record
from megatron_grow.checkpoint.torch_dist.names import COMPLETE
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import CheckpointSection, RunSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.train.choice import Choice, choose
from megatron_grow.train.identity import Identity
from tests.toy import MODEL

RUN = "the run"


def checkpoint(root: Path, step: int, run_id: str = RUN, **fields: Any) -> Path:
    """A checkpoint as far as the choice looks into it, named by the tracker file."""
    path = step_dir(root, step)
    path.mkdir(parents=True)
    record = Record(step, 0, 0, 0, step, asdict(MODEL), "fp32", {}, run_id=run_id, **fields)
    (path / RECORD).write_text(record.to_json())
    (path / COMPLETE).write_text("{}")
    (root / TRACKER).write_text(str(step))
    return path


class Place:
    """A run's directory, another's checkpoint, and what is chosen."""

    def __init__(self, directory: Path) -> None:
        self.output = directory / "run"
        self.root = self.output / "checkpoints"
        self.other = checkpoint(directory / "other", 7, "another run")
        self.begun = Beginning(str(self.other), identity(self.other))

    def saved(self, *steps: int, **fields: Any) -> list[Path]:
        return [checkpoint(self.root, step, **fields) for step in steps]

    def rows(self, *steps: int) -> None:
        self.output.mkdir(exist_ok=True)
        lines = [json.dumps({"step": step}) + "\n" for step in steps]
        (self.output / "metrics.jsonl").write_text("".join(lines))

    def choose(
        self,
        load: Path | str | None = None,
        *,
        initial: Path | None = None,
        overwrite: bool = False,
        grows: bool = False,
        environment: dict[str, str] | None = None,
        async_save: bool = False,
    ) -> Choice:
        config = RunConfig(
            run=RunSection(output_dir=str(self.output), overwrite=overwrite),
            checkpoint=CheckpointSection(
                load=load and str(load),
                initial=initial and str(initial),
                save_interval=10,
                async_save=async_save,
            ),
        )
        return choose(config, grows=grows, environment=environment or {})

    def refuses(self, *parts: object, **choice: Any) -> None:
        before = sorted(self.output.rglob("*"))
        with pytest.raises(UserError) as error:
            self.choose(**choice)
        message = str(error.value)
        assert "\n" not in message
        for part in parts:
            assert str(part) in message, message
        assert sorted(self.output.rglob("*")) == before


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nothing_is_there(place: Place) -> None:
    for load in (None, "auto"):
        assert place.choose(load).path is None
        begins = place.choose(load, initial=place.other)
        assert (begins.path, begins.grows, begins.own) == (place.other, True, False)
    goes_on = place.choose(place.other)
    assert (goes_on.path, goes_on.grows, goes_on.own) == (place.other, False, False)
    assert place.choose(place.other, grows=True).grows
    assert place.choose(place.other.parent).path == place.other
    assert goes_on.begun_from == (place.begun,)
    assert len({place.choose().run_id for _ in range(3)}) == 3
    place.refuses("checkpoint.load=", place.root, "not a directory", load=place.root)
    place.refuses("no complete checkpoint", load=place.root / "iter_0000010")
    place.refuses("leave one of them out", load=place.other, initial=place.other)


def test_a_beginning_is_refused_where_a_run_is(place: Place) -> None:
    place.saved(10, 20)
    for initial in (None, place.other):
        place.refuses(
            place.output,
            "checkpoints up to step 20",
            "--checkpoint.load auto",
            "--run.output_dir",
            "--run.overwrite true",
            initial=initial,
        )
        anew = place.choose(initial=initial, overwrite=True)
        assert (anew.path, anew.clears, anew.own) == (initial, True, False)
        assert anew.run_id != RUN


def test_metrics_alone_are_a_run_too(place: Place) -> None:
    """One that was killed before its first checkpoint."""
    place.rows(1, 2, 10)
    place.refuses("metrics up to step 10", "--run.overwrite true")
    assert place.choose("auto").path is None
    assert place.choose(place.other).path == place.other
    assert place.choose(overwrite=True).clears


def test_checkpoints_that_are_gone_are_missed(place: Place) -> None:
    """A directory that is not mounted, or was deleted, is no reason to begin at step 0."""
    place.rows(1, 25)
    place.refuses(place.root, "step 25", "step 20", load="auto")
    place.rows(21, 29)  # of a run that began at step 20: it has not saved yet
    assert place.choose("auto").path is None


def test_a_checkpoint_that_was_being_written_is_not_missed(place: Place) -> None:
    place.rows(1, 20)
    assert place.choose("auto", async_save=True).path is None
    place.rows(1, 21)  # the save of step 20 has begun, so that of step 10 had ended
    place.refuses("step 21", "step 10", load="auto", async_save=True)


def test_goes_on_with_the_newest(place: Place) -> None:
    _, newest = place.saved(10, 20)
    for load in ("auto", place.root):
        found = place.choose(load)
        assert (found.path, found.step, found.own, found.later) == (newest, 20, True, ())
        assert found.run_id == RUN
    named = f"checkpoint.initial={place.other}"
    place.refuses("did not begin", named, load="auto", initial=place.other)


def test_the_tracker_says_what_is_newest(place: Place) -> None:
    older, _ = place.saved(10, 20)
    (place.root / TRACKER).write_text("10")
    found = place.choose("auto")
    assert (found.path, found.later) == (older, (20,))


def test_a_save_that_was_killed_before_the_tracker_moved(place: Place) -> None:
    before, saved = place.saved(10, 20)
    tracker, pending = place.root / TRACKER, place.root / PENDING
    tracker.write_text("10")
    os.utime(tracker, (1, 1))
    pending.write_text("20")
    os.utime(pending, (2, 2))
    found = place.choose("auto")
    assert (found.path, found.later) == (saved, ())
    tracker.write_text("10")  # by a user, who wants to go on from there
    found = place.choose("auto")
    assert (found.path, found.later) == (before, (20,))


def test_a_lost_tracker(place: Place) -> None:
    older, newer = place.saved(10, 20)
    (place.root / TRACKER).unlink()
    place.refuses(place.root / TRACKER, "10, 20", load="auto")
    place.refuses(place.root / TRACKER, "10, 20", load=place.other)
    assert place.choose(newer).path == newer
    assert place.choose(older).later == (20,)


def test_goes_back_once(place: Place) -> None:
    """A job that is requeued with the same command goes on with its work."""
    oldest, *_ = place.saved(10, 20, 30)
    back = place.choose(oldest)
    assert (back.path, back.step, back.later, back.own) == (oldest, 10, (20, 30), True)
    for step in (20, 30):
        step_dir(place.root, step).rename(place.output / str(step))
    (newest,) = place.saved(15, begun_from=list(back.begun_from))
    again = place.choose(oldest)
    assert (again.path, again.later) == (newest, ())
    assert "15" in again.notes[0] and "--run.overwrite true" in again.notes[0]
    assert place.choose(oldest, overwrite=True).later == (15,)


def test_goes_on_from_the_newest_by_name_once(place: Place) -> None:
    (named,) = place.saved(10)
    found = place.choose(named)
    (newest,) = place.saved(20, begun_from=list(found.begun_from))
    assert place.choose(named).path == newest


def test_goes_on_with_what_began_elsewhere(place: Place) -> None:
    """Also when that has been moved, or is gone."""
    (newest,) = place.saved(10, begun_from=[place.begun])
    for load in (place.other, place.other.parent):
        assert place.choose(load).path == newest
    moved = place.other.rename(place.other.with_name("iter_0000008"))
    assert place.choose(moved).path == newest
    assert place.choose(place.other).path == newest
    assert place.choose("auto", initial=place.other).path == newest
    gone = place.other.with_name("iter_0000009")
    place.refuses(gone, "not a directory", "run at step 10", "--checkpoint.load auto", load=gone)
    place.refuses("neither", "run at step 10", load=place.output)  # which is not of checkpoints


def test_another_run_does_not_take_its_place(place: Place) -> None:
    place.saved(10)
    place.refuses(
        place.root, place.other, "did not begin", "auto", "--run.overwrite true", load=place.other
    )
    assert place.choose(place.other, overwrite=True).clears


def test_an_own_checkpoint_is_not_initial(place: Place) -> None:
    (own,) = place.saved(10)
    place.refuses(own, "checkpoint.load", initial=own, overwrite=True)


@pytest.mark.parametrize("name", ["iter_0000010", ".iter_0000010.replaced"])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(place: Place, name: str) -> None:
    (path,) = place.saved(10, run_id="the first run")
    path.rename(path.with_name(name))
    assert replaced(path).name == ".iter_0000010.replaced"
    assert place.choose("auto").path == path.with_name(name)  # nothing says whose directory it is
    Identity("the second run", []).write(place.output)
    place.refuses(name, "another run", load="auto")


def test_a_step_under_the_name_of_another(place: Place) -> None:
    (path,) = place.saved(10)
    path.rename(path.with_name("iter_0000020"))
    (place.root / TRACKER).write_text("20")
    place.refuses("iter_0000020", "step 10", load="auto")


JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}


def test_a_requeued_job_goes_on(place: Place) -> None:
    """Its first attempt did what was asked for; nothing of its work is set aside or refused."""
    oldest, newest = place.saved(10, 20)
    Identity(RUN, ["SLURM job 7"]).write(place.output)
    for overwrite in (False, True):
        for load in (None, oldest):
            found = place.choose(load, overwrite=overwrite, environment=JOB)
            assert (found.path, found.later, found.clears) == (newest, (), False)
    other = {**JOB, "SLURM_JOB_ID": "8"}
    place.refuses("--run.overwrite true", environment=other)
    assert place.choose(overwrite=True, environment=other).clears
    place.refuses("--run.overwrite true", environment={**JOB, "SLURM_RESTART_COUNT": "0"})


@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl"])
def test_damaged_files(place: Place, file: str) -> None:
    place.saved(10)
    (place.output / file).write_text("{\n{\n")
    place.refuses(place.output / file, load="auto")


def test_a_damaged_newest_names_the_one_before(place: Place) -> None:
    older, newest = place.saved(10, 20)
    (newest / RECORD).write_text("{")
    place.refuses(newest / RECORD, "damaged", f"no other checkpoint in {place.root}", load="auto")
    assert older.exists()
