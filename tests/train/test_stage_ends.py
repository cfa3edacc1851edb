"""A stage that ends by a rule is a stage of that length, however often the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

from megatron_grow.checkpoint.record import StageEnd
from megatron_grow.config.batch import BatchShape
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import Stage, StageSection
from megatron_grow.config.until import StageRule
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.methods.base import Context
from megatron_grow.rules.base import Observation, Rule
from megatron_grow.train.console import Console
from megatron_grow.train.ending import StageEnding
from megatron_grow.train.output import Output
from tests.corpus import write_corpus
from tests.distributed import run_ranks
from tests.toy import MODEL
from tests.train.command import losses, rows
from tests.train.jobs import read_by, run_all

ITERS, BOUND, EVERY = 18, 16, 3
SHORT, LONG = {"seq_length": 4, "global_batch_size": 2}, {"seq_length": 32, "global_batch_size": 4}
"""Of 8 and of 128 tokens: a sequence of 32 begins after every fourth of the short steps."""
TP2 = {"tensor_model_parallel_size": 2}


def stages(until: Any, **layout: Any) -> str:
    """The option: one stage that ends so, and one that is grown out of it."""
    first = {"until": until, "model": {"num_layers": 0}, "train": SHORT, "parallel": layout}
    return "--stages=" + json.dumps([first, {"grow": {"depth": "random"}}])


def below(loss: float, at_most: int = BOUND) -> dict[str, Any]:
    return {"rule": "loss_below", "loss": loss, "every": EVERY, "at_most": at_most}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    corpora = []
    for name in ("a", "b"):
        (directory / name).mkdir()
        corpora += [0.5, write_corpus(directory / name)]
    run = {
        "run": {"seed": 5},
        "model": {
            "num_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
        "train": {
            "train_iters": ITERS,
            **LONG,
            "log_interval": 1,
            "eval_interval": EVERY,
            "eval_iters": 1,
        },
        "optimizer": {"lr": 3e-3},
        "data": {"train_data_path": corpora, "split": "60,40,0"},
        "checkpoint": {"save_interval": 1},
        "logging": {"tensorboard": False},
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


def command(workplace: Path, name: str, *options: str) -> list[str]:
    output = str(workplace / name)
    return ["--config", str(workplace / "run.yaml"), "--run.output_dir", output, *options]


def from_step(workplace: Path, step: int) -> list[str]:
    """The options to go on from the checkpoint of ``ruled`` after that step."""
    path = workplace / "ruled" / "checkpoints" / f"iter_{step:07d}"
    return [f"--checkpoint.load={path}", "--checkpoint.save_interval=0"]


def means(whole: dict[int, float]) -> dict[int, float]:
    """What the rule sees, by the step after which it sees it."""
    return {
        step: sum(whole[s] for s in range(step - EVERY + 1, step + 1)) / EVERY
        for step in range(EVERY, BOUND + 1, EVERY)
    }


@pytest.fixture(scope="module")
def known(workplace: Path) -> tuple[float, int, int]:
    """A loss that a first run tells; the step whose mean is first below it, and the end."""
    [[(code, errors, _)]] = run_ranks(1, run_all, [command(workplace, "first", stages(BOUND))])
    assert code == 0, errors
    seen = means(losses(workplace, "first"))
    step = next(s for s in (6, 9) if seen[s] < min(seen[t] for t in seen if t < s))
    loss = (seen[step] + min(seen[t] for t in seen if t < step)) / 2
    return loss, step, -(-step // 4) * 4


STEPS = ("in an interval", "decided", "before its end", "ended", "grown")


@pytest.fixture(scope="module")
def done(workplace: Path, known: tuple[float, int, int]) -> dict[str, tuple[int, str, list]]:
    """By name: how the command ended, and what its two ranks read."""
    loss, step, end = known
    ruled = stages(below(loss))
    places = dict(zip(STEPS, (step - 2, step, end - 1, end, end + 1), strict=True))
    commands = {"ruled": [ruled], "fixed": [stages(end)]}
    commands |= {name: [ruled, *from_step(workplace, at)] for name, at in places.items()}
    other = stages(below(loss), **TP2)
    commands["other layout"] = [other, *from_step(workplace, step - 2)]
    own = {"rule": "extend.plateau:Plateau", "patience": 9, "every": EVERY, "at_most": BOUND}
    commands["never"] = [stages(own), *from_step(workplace, step - 2)]
    seen = {row["step"]: row["val_loss"] for row in rows(workplace, "first") if "val_loss" in row}
    until = {**below((seen[EVERY] + seen[2 * EVERY]) / 2), "losses": "validation"}
    commands["validated"] = [stages(until), "--train.eval_interval=100"]
    commands["bounded"] = [stages(below(loss, at_most=end - 4)), *from_step(workplace, end + 1)]
    commands["later"] = [stages(end + 4), *from_step(workplace, end + 1)]
    results = run_ranks(
        2, run_all, [command(workplace, name, *more) for name, more in commands.items()]
    )
    return {
        name: (*ranks[0][:2], [seen for *_, seen in ranks])
        for name, ranks in zip(commands, zip(*results, strict=True), strict=True)
    }


def ends(workplace: Path, name: str) -> list[tuple[int, int, int]]:
    """When it was known where which stage ends, and where."""
    found = [row for row in rows(workplace, name) if row.get("event") == "stage_end"]
    return [(row["step"], row["stage"], row["last_step"]) for row in found]


def recorded(workplace: Path, name: str, step: int) -> list[dict[str, Any]]:
    path = workplace / name / "checkpoints" / f"iter_{step:07d}" / "megatron_grow.json"
    return json.loads(path.read_text())["stage_ends"]


def test_it_is_a_stage_of_that_length(workplace: Path, done, known) -> None:
    _, step, end = known
    assert [done[name][0] for name in ("ruled", "fixed")] == [0, 0], done["ruled"][1]
    assert ends(workplace, "ruled") == [(step, 0, end)] and ends(workplace, "fixed") == []
    whole = losses(workplace, "ruled")
    assert whole == losses(workplace, "fixed") and len(whole) == ITERS
    assert read_by(done["ruled"][2], "train") == read_by(done["fixed"][2], "train")
    assert len(read_by(done["ruled"][2], "train")) == 8 * end + 128 * (ITERS - end)
    told, others = (
        [
            {
                name: row[name]
                for name in row.keys() - {"tokens_per_second", "step_time", "communication_wait"}
            }
            for row in rows(workplace, name)
            if "event" not in row
        ]
        for name in ("ruled", "fixed")
    )
    assert told == others


def test_the_rule_sees_the_mean_over_its_interval(workplace: Path, done, known) -> None:
    loss, step, end = known
    seen = means(losses(workplace, "ruled"))
    assert [s for s in seen if s <= end and seen[s] < loss] == [step]
    [row] = [row for row in rows(workplace, "ruled") if row.get("event") == "stage_end"]
    assert row["reason"] == f"loss_below: loss {seen[step]:.6g} is below {loss:g}"
    assert recorded(workplace, "ruled", step - 1) == []
    for saved in (step, end, end + 1, ITERS):
        [found] = recorded(workplace, "ruled", saved)
        assert found == {"stage": 0, "step": end, "reason": row["reason"]}


@pytest.mark.parametrize("name", STEPS)
def test_a_resumed_run_is_the_same_to_the_bit(workplace: Path, done, known, name: str) -> None:
    _, step, end = known
    assert done[name][0] == 0, done[name][1]
    whole, rest = losses(workplace, "ruled"), losses(workplace, name)
    assert rest == {s: whole[s] for s in rest} and max(rest) == ITERS
    assert ends(workplace, name) == ([(step, 0, end)] if name == "in an interval" else [])
    assert recorded(workplace, name, ITERS) == recorded(workplace, "ruled", ITERS)
    assert rows(workplace, name)[-1]["val_loss"] == rows(workplace, "ruled")[-1]["val_loss"]


def test_another_layout_ends_at_the_same_step(workplace: Path, done, known) -> None:
    _, step, end = known
    assert done["other layout"][0] == 0, done["other layout"][1]
    assert ends(workplace, "other layout") == [(step, 0, end)]
    whole = losses(workplace, "ruled")
    rest = losses(workplace, "other layout")
    assert rest == pytest.approx({s: whole[s] for s in rest}, rel=1e-5)


def test_a_rule_that_finds_nothing_ends_the_stage_at_its_bound(workplace: Path, done) -> None:
    """Here one of one's own, asked from where another had not decided yet."""
    assert done["never"][0] == 0, done["never"][1]
    assert ends(workplace, "never") == [(BOUND, 0, BOUND)]
    assert recorded(workplace, "never", ITERS) == [{"stage": 0, "step": BOUND, "reason": "at_most"}]
    whole = losses(workplace, "first")
    rest = losses(workplace, "never")
    assert rest == pytest.approx({s: whole[s] for s in rest}, rel=1e-5)


def test_an_end_that_can_no_longer_be_is_refused(done, known) -> None:
    *_, end = known
    code, errors, _ = done["bounded"]
    assert code == 2 and errors.count("\n") == 1
    assert f"ends stages[0] after step {end}, which is no end of it as it is now" in errors


def test_a_number_in_the_place_of_a_rule_must_be_where_it_ended(done, known) -> None:
    *_, end = known
    code, errors, _ = done["later"]
    assert code == 2 and errors.count("\n") == 1
    assert f"was trained with stages[0] up to step {end} (loss_below: loss " in errors
    assert f"its until, which is step {end + 4} now, must be that step or what it was" in errors


def test_a_rule_may_see_validation_losses(workplace: Path, done) -> None:
    """They fall from the first evaluation to the second."""
    assert done["validated"][0] == 0, done["validated"][1]
    assert ends(workplace, "validated") == [(2 * EVERY, 0, 8)]
    [row] = [row for row in rows(workplace, "validated") if row.get("event") == "stage_end"]
    evaluated = {r["step"]: r["val_loss"] for r in rows(workplace, "validated") if "val_loss" in r}
    assert list(evaluated) == [EVERY, 2 * EVERY, 8, ITERS]
    assert row["reason"].startswith(f"loss_below: loss {evaluated[2 * EVERY]:.6g} is below ")


def ruled(rule: StageRule) -> Stage:
    """A stage of 20 steps of 32 tokens."""
    batch = BatchShape(seq_length=16, global_batch_size=2, micro_batch_size=1)
    return Stage(0, 0, 20, MODEL, ParallelConfig(), None, batch, rule=rule)


def asked(rule: StageRule, known: list[StageEnd], evaluation: Any = None) -> StageEnding:
    """What asks the rule of that stage, and adds its end to ``known``."""
    stage = ruled(rule)
    output = Output(Console(20, progress_bar=False), None)
    return StageEnding(RunConfig(), stage, known, output, evaluation)


def after(step: int, loss: float | None, rule: StageRule) -> Context:
    """A context in which ``step`` has been done, with an update if it has a loss."""
    stage = ruled(rule)
    ctx = Context(RunConfig(), [stage], SimpleNamespace(stage=stage), None, step)
    ctx.updated = loss is not None
    ctx.means = lambda: {"loss": loss}
    return ctx


def resumed(ending: StageEnding, again: StageEnding) -> StageEnding:
    """``again`` with the state of ``ending``, as a checkpoint has it."""
    again.load_state_dict(json.loads(json.dumps(ending.state_dict())))
    return again


def test_an_evaluation_that_was_interrupted_is_asked_for_again() -> None:
    rule = StageRule({"rule": "loss_below", "loss": 2.0}, every=2, validation=True)
    known: list[StageEnd] = []
    ending = asked(rule, known, SimpleNamespace(report=lambda ctx: None))
    ending.after_step(after(1, 1.5, rule))
    ctx = after(2, 1.5, rule)
    ending.after_step(ctx)
    assert ctx.stopping and not ctx.ends and known == []
    ending = resumed(ending, asked(rule, known, SimpleNamespace(report=lambda ctx: {"loss": 1.25})))
    ctx = after(2, None, rule)
    ending.on_stage_start(ctx)
    assert ctx.ends and known == [StageEnd(0, 2, "loss_below: loss 1.25 is below 2")]


def test_a_method_may_end_a_stage_that_has_a_bound() -> None:
    """12 tokens a step, and then sequences of 16: every fourth step will do."""
    odd = {"seq_length": 4, "global_batch_size": 3}
    methods = ["a method that ends it"]
    run = RunConfig(
        model=MODEL,
        train=TrainSection(train_iters=40, seq_length=16, eval_iters=0),
        stages=[StageSection(until={"at_most": 20}, train=odd, methods=methods), StageSection()],
    )
    stages, known = run.resolve(1), []
    output = Output(Console(40, progress_bar=False), None)
    ending = StageEnding(run, stages[0], known, output, None)
    ctx = Context(run, stages, SimpleNamespace(stage=stages[0]), None, 0)
    for step in range(1, 9):
        ctx.next_step()
        if step in (5, 6):
            ctx.end_stage(f"enough after {step}")
        ending.after_step(ctx)
        assert ctx.ends == (step == 8)
    assert known == [StageEnd(0, 8, "enough after 5")]
    run.stages[0].until = 20
    with pytest.raises(UserError, match=r"^stages\[0\]\.until=20: a method would end the stage "):
        ctx.end_stage("enough")


class Answers(Rule):
    """Not what a rule should answer."""

    given: ClassVar[Any]

    def ends(self, history: Sequence[Observation]) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def test_an_answer_that_is_no_reason_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"{__name__}:Answers"
    rule, known = StageRule({"rule": own}, every=1), []
    for given in (True, False, 0, ["slope"]):
        monkeypatch.setattr(Answers, "given", given, raising=False)
        with pytest.raises(AgreedError) as error:
            asked(rule, known).after_step(after(1, 2.0, rule))
        assert f"stages[0].until.rule={own} answers {given!r}; its ends()" in str(error.value)
    monkeypatch.setattr(Answers, "given", None)
    asked(rule, known).after_step(after(1, 2.0, rule))
    assert known == []
    monkeypatch.setattr(Answers, "given", "")
    asked(rule, known).after_step(after(1, 2.0, rule))
    assert known == [StageEnd(0, 1, f"{own}: ")]


def test_rank_0_alone_asks_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on another rank cannot divide them."""
    rule = StageRule({"rule": f"{__name__}:Answers"}, every=1)
    monkeypatch.setattr(Answers, "given", ValueError("no slope"), raising=False)
    with pytest.raises(ValueError, match=r"^no slope$"):
        asked(rule, []).after_step(after(1, 2.0, rule))
    monkeypatch.setattr("megatron_grow.train.ending.leads", lambda: False)
    asked(rule, []).after_step(after(1, 2.0, rule))


def test_only_steps_with_an_update_count_and_none_before_at_least(capsys) -> None:
    """Losses of eight steps, None where the guard made no update; asked at 4, 6 and 8."""
    rule = StageRule({"rule": "loss_below", "loss": 2.0}, every=2, first_step=4)
    known: list[StageEnd] = []
    ending = asked(rule, known)
    for step, loss in enumerate([1.0, 1.5, 3.0, None, None, None, None, 1.75], start=1):
        ending, ctx = resumed(ending, asked(rule, known)), after(step, loss, rule)
        ending.after_step(ctx)
        assert ctx.ends == (step == 8)
    assert known == [StageEnd(0, 8, "loss_below: loss 1.75 is below 2")]
    history = ending.state_dict()["history"]
    assert [(seen["step"], seen["tokens"], seen["loss"]) for seen in history] == [
        (2, 64, 1.25), (4, 128, 3.0), (8, 256, 1.75)
    ]  # fmt: skip
    assert capsys.readouterr().out == (
        "step  8/20 | stage 0 ends after step 8 (loss_below: loss 1.75 is below 2)\n"
    )
