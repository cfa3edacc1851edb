"""What a family of models cost that one run released, and what it would have cost apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_grow.config.release import RELEASES
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.runs import COSTS, Cost, Run, load_run
from megatron_grow.train.rows import FILE_NAME, read_rows


@dataclass(frozen=True)
class Member:
    """A finished model of a family."""

    name: str
    run: Run
    """The branch that it is the end of, or the trunk."""
    begins: int
    """Step at which the branch leaves the trunk; of the trunk, its end."""
    own: dict[Cost, float]
    """FLOPs of the branch."""
    flops: dict[Cost, float]
    """FLOPs of all that it came from: of the trunk up to the branch, and of the branch."""

    @property
    def loss(self) -> float:
        """Its validation loss."""
        return float(self.run.val_loss[-1])


@dataclass(frozen=True)
class Family:
    """The members of a family, in the order in which they were released."""

    members: list[Member]
    trunk: dict[Cost, float]
    """FLOPs of the trunk."""

    def together(self, cost: Cost) -> float:
        """FLOPs of the family: of the trunk, and of each branch."""
        return self.trunk[cost] + sum(member.own[cost] for member in self.members)

    def apart(self, cost: Cost) -> float:
        """FLOPs of a run for each member that costs what the member took, from nothing."""
        return sum(member.flops[cost] for member in self.members)

    def saving(self, cost: Cost) -> float:
        """The share of :meth:`apart` that was not spent."""
        return 1.0 - self.together(cost) / self.apart(cost)


def load_family(output_dir: Path) -> Family:
    """Read the metrics of a run and of what it has released.

    A trunk that goes on after its last release is the last member.

    Raises:
        UserError: a run that released nothing, or a branch that cannot be read.
    """
    trunk, rows = load_run(output_dir), read_rows(output_dir / FILE_NAME)
    releases = [row for row in rows if row.get("event") == "release"]
    if not releases:
        raise UserError(f"{output_dir} has released no model: no stage of it has `release`")
    members = [_member(output_dir, row) for row in releases]
    spent = {cost: float(max(row[cost] for row in rows if cost in row)) for cost in COSTS}
    if trunk.steps[-1] > members[-1].begins:
        nothing = dict.fromkeys(COSTS, 0.0)
        members.append(Member("trunk", trunk, int(trunk.steps[-1]), nothing, spent))
    return Family(members, spent)


def _member(output_dir: Path, release: dict[str, Any]) -> Member:
    run = load_run(output_dir / RELEASES / release["name"])
    flops = {cost: float(run.flops[cost][-1]) for cost in COSTS}
    own = {cost: flops[cost] - release[cost] for cost in COSTS}
    steps = int(run.steps[-1]) - release["step"]
    if steps != release["steps"]:
        raise UserError(
            f"{run.output_dir} is at step {steps} of {release['steps']}: the branch is not finished"
        )
    return Member(release["name"], run, release["step"], own, flops)


def lines(family: Family, alone: Path | None = None) -> Iterator[str]:
    """A table for people.

    Args:
        family: what it is of.
        alone: with an output_dir for each member, by its name: a run of its size from nothing.

    Raises:
        UserError: one of these cannot be read.
    """
    yield f"{'':<12}{'steps':>14}{'FLOPs in all':>15}{'of its own':>13}{'loss':>9}" + (
        f"{'alone: FLOPs':>15}{'loss':>9}{'gap':>9}" if alone else ""
    )
    for member in family.members:
        own = member.own["flops_total"]
        steps = f"{member.begins} + {int(member.run.steps[-1]) - member.begins}"
        line = (
            f"{member.name:<12}{steps:>14}{member.flops['flops_total']:>15.3g}{own:>13.3g}"
            f"{member.loss:>9.4f}"
        )
        if alone is not None:
            other = load_run(alone / member.name)
            loss = float(other.val_loss[-1])
            line += f"{other.flops['flops_total'][-1]:>15.3g}{loss:>9.4f}"
            line += f"{100 * (member.loss / loss - 1):>+8.2f}%"
        yield line
    for cost, label in zip(COSTS, ("whole model", "layers only"), strict=True):
        spent = f"{family.together(cost):.4g} together, {family.apart(cost):.4g} apart"
        yield f"FLOPs, {label}: {spent}, {100 * family.saving(cost):.1f} % saved"


def summary(family: Family) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "members": [
            {
                "name": member.name,
                "steps": int(member.run.steps[-1]),
                "begins": member.begins,
                "val_loss": member.loss,
                "own": member.own,
                **member.flops,
            }
            for member in family.members
        ],
        "together": {cost: family.together(cost) for cost in COSTS},
        "apart": {cost: family.apart(cost) for cost in COSTS},
        "saving": {cost: family.saving(cost) for cost in COSTS},
    }
