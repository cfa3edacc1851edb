"""What the studies have in common: named runs, each what it does otherwise than a full-size one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout need not be installed

from laws import Law, Lengths, Power

from megatron_grow.config.run import RunConfig, parse_run, to_yaml
from megatron_grow.report.fair import assess
from megatron_grow.report.groups import Group
from megatron_grow.report.runs import COSTS, Run, load_run
from megatron_grow.report.twin import twin_of
from megatron_grow.report.words import at_equal_loss, value
from megatron_grow.train.rows import is_accuracy
from megatron_grow.train.status import is_done

ROOT = Path(__file__).resolve().parents[2]
Stages = list[dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A run: what it does otherwise than the full-size one."""

    length: float | str = 1.0
    """Share of the full-size run's steps; or a run as whose twin it takes as many FLOPs."""
    stages: Stages = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the run file, by path."""


@dataclass(frozen=True)
class Figure:
    """Runs that are compared in one report."""

    runs: tuple[str, ...]
    against: tuple[str, ...]
    """Fixed-size runs of one recipe, of several lengths."""


@dataclass(frozen=True)
class Study:
    """Runs of one run file, the full-size one first."""

    folder: Path
    """With ``run.yaml``; its name is that of the study."""
    variants: dict[str, Variant]
    figures: dict[str, Figure]
    corpus: tuple[str, ...]
    """Options of ``tools/preprocess_data.py`` for both corpora."""
    vocabulary: tuple[str, ...]
    """Those that train a tokenizer on the first."""
    laws: tuple[Law, ...] = ()

    def __post_init__(self) -> None:
        named = [name for each in self.figures.values() for name in (*each.runs, *each.against)]
        for law in self.laws:
            named += [run.format(source) for run in law.runs.values() for source in law.sources]
        unknown = set(named) - set(self.variants)
        if unknown:
            raise ValueError(f"figures and laws name runs that are none: {sorted(unknown)}")

    @property
    def run_file(self) -> Path:
        """Of the full-size run."""
        return self.folder / "run.yaml"

    @property
    def corpora(self) -> str:
        """What their files begin with, as the run file has it."""
        return f"data/study_{self.folder.name}"

    def main(self, description: str) -> None:
        """Do what the command line says."""
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verbs = parser.add_subparsers(dest="verb", required=True)
        data = verbs.add_parser("data")
        data.add_argument("train", type=Path)
        data.add_argument("valid", type=Path)
        run = verbs.add_parser("run")
        run.add_argument("names", nargs="*", metavar="NAME", help=", ".join(self.variants))
        run.add_argument("--seed", type=int, default=1)
        verbs.add_parser("table")
        verbs.add_parser("laws")
        figure = verbs.add_parser("figure")
        figure.add_argument("name", choices=self.figures)
        figure.add_argument("output", type=Path, metavar="DIR")
        args = parser.parse_args()
        if args.verb == "data":
            self._make_data(args.train, args.valid)
        elif args.verb == "run":
            unknown = set(args.names) - set(self.variants)
            if unknown:
                parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(self.variants)}")
            for name in args.names or self.variants:
                self._train(name, args.seed)
        elif args.verb == "table":
            print(self._table())
        elif args.verb == "laws":
            print("\n\n".join([self._lengths(), *(self._law(law) for law in self.laws)]))
        else:
            self._compare(self.figures[args.name], args.output)

    def config(self, name: str) -> RunConfig:
        """The run file of a run."""
        variant = self.variants[name]
        fields = [f"--{path}={value}" for path, value in variant.fields.items()]
        stages = ["--stages", json.dumps(variant.stages)]
        config = parse_run(["--config", str(self.run_file), *stages, *fields])
        if isinstance(variant.length, str):
            steps = twin_of(self.config(variant.length), "flops").config.train.train_iters
        else:
            steps = round(variant.length * config.train.train_iters)
        train, run = replace(config.train, train_iters=steps), replace(config.run, name=name)
        return replace(config, train=train, run=run)

    def _make_data(self, train: Path, valid: Path) -> None:
        tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), *self.corpus]
        first = ["--input", str(train.resolve()), "--output-prefix", self.corpora]
        second = ["--input", str(valid.resolve()), "--output-prefix", f"{self.corpora}_valid"]
        subprocess.run([*tool, *first, *self.vocabulary], cwd=ROOT, check=True)
        tokenizer = ["--tokenizer", f"{self.corpora}-tokenizer.json"]
        subprocess.run([*tool, *second, *tokenizer], cwd=ROOT, check=True)

    def _train(self, name: str, seed: int) -> None:
        """Train one run to its end, on one core."""
        print(f"== {name}, seed {seed}", flush=True)
        directory = self._directory(name, seed)
        directory.parent.mkdir(parents=True, exist_ok=True)
        run_file = directory.parent / f"{name}.yaml"
        run_file.write_text(to_yaml(self.config(name)))
        command = [sys.executable, "pretrain_progressive.py", "--config", str(run_file)]
        command += ["--run.output_dir", str(directory.relative_to(ROOT)), "--run.seed", str(seed)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:  # it has said why
            raise SystemExit(done.returncode)

    def _directory(self, name: str, seed: int) -> Path:
        return ROOT / "runs" / f"study_{self.folder.name}" / f"seed{seed}" / name

    def _finished(self, name: str) -> list[Path]:
        """Directories of a run, one for each seed of which it has finished."""
        seeds = self._directory(name, 0).parent.parent.glob(f"seed*/{name}")
        return sorted(directory for directory in seeds if is_done(directory))

    def _compare(self, figure: Figure, output: Path) -> None:
        runs, against = (
            [str(found) for name in names for found in self._finished(name)]
            for names in (figure.runs, figure.against)
        )
        tool = [sys.executable, "tools/compare_runs.py", *runs, "--against", *against]
        subprocess.run([*tool, "--output", str(output.resolve())], cwd=ROOT, check=True)

    def _table(self) -> str:
        """What runs reached, what they had cost, and what growing was worth, in Markdown."""
        found = self._groups()
        if not found:
            raise SystemExit("no run has finished")
        first = next(iter(found.values()))
        others = [name for name in first.runs[0].numbers if is_accuracy(name)]
        headings = ["run", "seeds", "steps", "loss", *others, "FLOPs", "FLOPs of layers"]
        headings += [*_WORTH, "head start", "lost"]
        lines = ["| " + " | ".join(headings).replace("_", " ") + " |", "|---" * len(headings) + "|"]
        for name, group in found.items():
            cells = [name, str(len(group.runs)), f"{group.steps:,}"]
            cells += [_mean(group.runs, number) for number in ("loss", *others)]
            cells += [f"{group.flops(cost) / first.flops(cost):.3f}" for cost in COSTS]
            cells += self._worth(group, found) if self.variants[name].stages else [""] * 5
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def _groups(self) -> dict[str, Group]:
        """What has finished, by name."""
        found = {
            name: Group(name, tuple(load_run(directory) for directory in self._finished(name)))
            for name in self.variants
        }
        return {name: group for name, group in found.items() if group.runs}

    def _lengths(self) -> str:
        """What the full size would reach, by a curve through its finished lengths."""
        plain = [
            (group.steps, group.loss.mean)
            for name, group in self._groups().items()
            if group.loss and not self.variants[name].stages and not self.variants[name].fields
        ]
        found = Lengths.through(plain)
        if found is None:
            return f"full size, {len(plain)} lengths: no curve with a floor"
        return (
            f"full size, {len(plain)} lengths: loss = {found.floor:.3f} + {found.scale:.3g} / "
            f"T^{found.exponent:.2f}; T and T / 5 differ by 0.5 % from T = "
            f"{found.enough(0.2, 0.005):,.0f} steps on"
        )

    def _law(self, law: Law) -> str:
        """Steps gained and lost at each value, in Markdown, and powers of the value."""
        found = self._groups()
        headings = ["source", law.over, "promised", "lost", "head start", *_WORTH]
        lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        for source in law.sources:
            names = {at: name.format(source) for at, name in law.runs.items()}
            groups = {at: found[name] for at, name in names.items() if name in found}
            if len(groups) < 2:
                continue
            points: dict[str, list[tuple[float, float]]] = {"lost": [], "head start": []}
            for at, group in groups.items():
                worth = self._beside_full(group, found)
                start, lost = (
                    worth[key] and worth[key]["mean"]
                    for key in ("head_start_steps", "lost_in_growing_steps")
                )
                cells = [source, f"{at:g}"]
                if start is None or lost is None:
                    cells += [""] * 3
                else:
                    cells += [f"{steps:.0f}" for steps in (start + lost, lost, start)]
                    points["lost"].append((at, lost))
                    points["head start"].append((at, start))
                lines.append("| " + " | ".join([*cells, *_gap_and_saving(worth)]) + " |")
            powers = [str(Power.through(each) or "") for each in points.values()]
            lines.append("| " + " | ".join([source, "exponent", "", *powers, "", "", ""]) + " |")
        return "\n".join(lines)

    def _worth(self, group: Group, found: dict[str, Group]) -> list[str]:
        """Of a run that grew, beside full-size ones that are else as it is."""
        worth = self._beside_full(group, found)
        head_start, lost = worth["head_start_steps"], worth["lost_in_growing_steps"]
        steps = (f"{each['mean']:.0f}" if each else "" for each in (head_start, lost))
        return [*_gap_and_saving(worth), *steps]

    def _beside_full(self, group: Group, found: dict[str, Group]) -> dict[str, Any]:
        """As :func:`.assess`; runs of other seeds only where none is of the same."""
        fields = self.variants[group.name].fields
        seeds = {run.seed for run in group.runs}
        lengths = [
            replace(other, runs=tuple(run for run in other.runs if run.seed in seeds) or other.runs)
            for name, other in found.items()
            if not self.variants[name].stages and self.variants[name].fields == fields
        ]
        (worth,) = assess([group], lengths)["grown"]
        return dict(worth)


_WORTH = ("at equal steps", "at equal loss: FLOPs", "of layers")


def _gap_and_saving(worth: dict[str, Any]) -> list[str]:
    """What :data:`_WORTH` names."""
    steps = worth["equal_steps"]
    return [
        f"{steps['gap_percent']:+.1f} %" if steps else "",
        *(at_equal_loss(worth["equal_loss"][cost]) for cost in COSTS),
    ]


def _mean(runs: Iterable[Run], name: str) -> str:
    """Of a final number over seeds, with each seed's behind it."""
    finals = [float(run.numbers[name][-1]) for run in runs]
    mean = value(name, fmean(finals))
    if len(finals) == 1:
        return mean
    return f"{mean} ({', '.join(value(name, each) for each in finals)})"
