"""A run that stops amid its methods goes on as if it had not, on any layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.checkpoint.record import read_record
from megatron_grow.config.grow import GrowSection
from megatron_grow.growth.offline import GrownReader
from megatron_grow.growth.plan import growth
from megatron_grow.state.boxes import full
from tests.methods.average import DECAY
from tests.train.command import launch, losses, rows

FROZEN = "embedding.position_embeddings.weight"
SKIP = "tests.methods.skip_spikes:SkipSpikes"


def stages(**parallel: int) -> list[str]:
    """The second stage, of steps 11 to 20, fades new layers in and warms up their rate."""
    second: dict[str, Any] = {
        "grow": {"depth": "random", "mask_iters": 7},
        "parallel": parallel,
        "methods": [
            {"name": SKIP, "share": 0.1},
            {"name": "frozen", "tensors": [FROZEN]},
            {"name": "warm_up_new", "iters": 8},
            {"name": "tests.methods.average:Average"},
        ],
    }
    return ["--stages", json.dumps([{"until": 10, "model": {"num_layers": 1}}, second])]


TENSOR = stages(tensor_model_parallel_size=2)


@pytest.fixture(scope="module")
def whole(workplace: Path) -> dict[int, float]:
    code, _, errors = launch(workplace, "whole", *TENSOR)
    assert code == 0, errors
    return updates(workplace, "whole")


def updates(workplace: Path, name: str) -> dict[int, float]:
    """Losses of the steps that made one; those of others are in no row."""
    return {step: loss for step, loss in losses(workplace, name).items() if loss is not None}


def rest(whole: dict[int, float]) -> dict[int, float]:
    found = {step: loss for step, loss in whole.items() if step > 15}
    assert 1 < len(found) < 5, "some steps make no update, others do"
    return found


def resumed(workplace: Path, name: str, options: list[str]) -> dict[int, float]:
    saved = workplace / "whole" / "checkpoints" / "iter_0000015"
    code, _, errors = launch(workplace, name, *options, "--checkpoint.load", str(saved))
    assert code == 0, errors
    return updates(workplace, name)


def states(workplace: Path, name: str, step: int) -> dict[str, Any]:
    return read_record(workplace / name / "checkpoints" / f"iter_{step:07d}").methods


def test_resume_is_exact(workplace: Path, whole: dict[int, float]) -> None:
    """Masks, the rate of what is new, and the moving average of the losses."""
    assert resumed(workplace, "again", TENSOR) == rest(whole)
    known, after = states(workplace, "whole", 15), states(workplace, "whole", 20)
    assert known.keys() == {"methods[0]"}, "only a method with a memory is in the record"
    before, skipped = (state["methods[0]"]["skipped"] for state in (known, after))
    assert before and skipped[: len(before)] == before and skipped[-1] > 15
    assert states(workplace, "again", 20) == after
    assert read_record(workplace / "whole/checkpoints/iter_0000020").optimizer_step == 20 - len(
        skipped
    )
    assert all("loss" in row for row in rows(workplace, "whole") if "lr" in row)
    reports = [
        [row for row in rows(workplace, name) if row.get("event") == "spike"]
        for name in ("whole", "again")
    ]
    assert [row["step"] for row in reports[0]] == skipped
    assert all(row["loss"] > row["average"] and row["stage"] == 1 for row in reports[0])
    assert reports[1] == reports[0][len(before) :]


def weights(workplace: Path, name: str, step: int, kind: str) -> dict[str, torch.Tensor]:
    source = open_reader(workplace / name / "checkpoints" / f"iter_{step:07d}")
    return {
        key: source.read(key, kind, full(tensor.shape)).clone()
        for key, tensor in source.tensors.items()
    }


def test_another_layout_goes_on_alike(workplace: Path, whole: dict[int, float]) -> None:
    """With what a method keeps of tensors: an average of the weights after steps 15 and 20."""
    found = resumed(workplace, "pipeline", stages(pipeline_model_parallel_size=2))
    assert found == pytest.approx(rest(whole), rel=1e-4)
    before = weights(workplace, "whole", 15, "average")
    for name in ("whole", "pipeline"):
        now = weights(workplace, name, 20, "main_param")
        for key, average in weights(workplace, name, 20, "average").items():
            expected = DECAY * before[key] + (1 - DECAY) * now[key]
            torch.testing.assert_close(average, expected, rtol=0.0, atol=1e-6)
            assert torch.equal(average, before[key]) == (key == FROZEN)


def test_other_methods_are_told(workplace: Path, whole: dict[int, float]) -> None:
    """What one remembers is given to no other that stands in its place."""
    section = json.loads(TENSOR[1])
    del section[1]["methods"][0], section[1]["methods"][-1]
    saved = workplace / "whole" / "checkpoints" / "iter_0000015"
    stages = ["--stages", json.dumps(section), "--checkpoint.load", str(saved)]
    code, output, errors = launch(workplace, "others", *stages)
    assert code == 0, errors
    told = " ".join(output.split())
    assert f"stages[1].methods [{{'name': '{SKIP}', 'share': 0.1}}, " in told
    assert "-> [{'name': 'frozen'" in told
    record = read_record(workplace / "others" / "checkpoints" / "iter_0000020")
    assert record.methods == {} and record.optimizer_step > 15


# Of fading in alone, as it was before it was a method of a table.
RECORDED = [
    *(5.371738910675049, 5.389194488525391, 5.238217115402222, 5.085106134414673),
    *(4.9690752029418945, 4.8735432624816895, 4.912282705307007, 4.550889730453491),
    *(4.602527379989624, 4.4587836265563965, 4.143591403961182, 4.110273361206055),
    *(4.052929401397705, 3.888664722442627, 3.9279894828796387, 3.5552616119384766),
    *(3.5939388275146484, 3.578277111053467, 3.4803690910339355, 3.845616340637207),
]


def test_recorded_losses(workplace: Path, whole: dict[int, float]) -> None:
    section = json.loads(TENSOR[1])
    section[1]["methods"] = []
    code, _, errors = launch(workplace, "plain", "--stages", json.dumps(section))
    assert code == 0, errors
    plain = updates(workplace, "plain")
    assert [plain[step] for step in range(1, 21)] == pytest.approx(RECORDED, rel=1e-5)
    same = [step for step, loss in whole.items() if loss == plain[step]]
    assert same == list(range(1, 12)), "the first step after the growth has seen no update"


def test_a_growth_of_the_checkpoint_leaves_it_behind(
    workplace: Path, whole: dict[int, float]
) -> None:
    """What a method keeps ends with its stage; without a growth it goes along."""
    source = open_reader(workplace / "whole" / "checkpoints" / "iter_0000020")
    model, grow = source.record.model_config, GrowSection(depth="copying_stack")
    deeper = replace(model, num_layers=2 * model.num_layers)
    plan = growth(model, deeper, grow, target_depth=deeper.num_layers, seed=1)
    grown = GrownReader(source, plan, deeper, grow)
    for key in source.tensors:
        assert set(source.kinds(key)) == {"main_param", "exp_avg", "exp_avg_sq", "average"}
        assert set(grown.kinds(key)) == {"main_param", "exp_avg", "exp_avg_sq"}
