"""The study of BERT, shared or small at first: each name is a run of a toy on one CPU core.

  python examples/study/bert/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/bert/study.py run full swe_f compound --seed 1     all if none is named
  python examples/study/bert/study.py table --seed 1                       what has finished
  python examples/study/bert/study.py plot curves.png --seed 1             a picture of it

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # a checkout need not be installed

import yaml
from curves import draw

from megatron_grow.config.run import parse_run
from megatron_grow.report.runs import load_run
from megatron_grow.report.twin import twin_of

ROOT = Path(__file__).resolve().parents[3]
RUN_FILE = Path(__file__).with_name("run.yaml")
RUNS = ROOT / "runs" / "study_bert"
Stages = list[dict[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A run: what it does otherwise than the full-size one."""

    length: float | str = 1.0
    """Share of the full-size run's steps; or a run as whose twin it takes as many FLOPs."""
    stages: Stages = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the run file, by path."""


def _swe(sharing: str, until: Any = 0.1, methods: Stages | None = None, **then: Any) -> Stages:
    """Layers that train as one, then not."""
    first = {"until": until, "model": {"layer_sharing": sharing}, "methods": methods or []}
    return [first, {"grow": {"depth": "unshare"}, **then}]


def _stacked(*models: dict[str, Any], **growth: Any) -> Stages:
    """Three stages of a sixth, a sixth and two thirds of the steps, the last at full size."""
    grow = {"grow": {"recipe": "compound_grow", **growth}, "rewarmup_iters": 100}
    first, second = models
    return [{"until": 1 / 6, "model": first}, {"until": 1 / 3, "model": second, **grow}, grow]


_SHALLOW = {"num_layers": 2}, {"num_layers": 4}
_NARROW = {"ffn_hidden_size": 64}, {"ffn_hidden_size": 128}
_SHORT = {"options": {"pool_size": 2}}, {"options": {"pool_size": 2}}
_COMPOUND = tuple({**a, **b, **c} for a, b, c in zip(_SHALLOW, _NARROW, _SHORT, strict=True))
_MEASURED = {"every": 60, "rho": 0.5}
_DEEP = {"model.num_layers": 24}
_DEEP_POST = {**_DEEP, "model.options.norm_position": "post"}
VARIANTS = {
    "full": Variant(),
    # Is the rate that all have a good one for the full size?
    "slow": Variant(fields={"optimizer.lr": 1.0e-3}),
    "fast": Variant(fields={"optimizer.lr": 4.0e-3}),
    # Sharing, then unsharing, in half of the steps.
    "half": Variant(0.5),
    "swe_f": Variant(0.5, _swe("1x8")),
    "swe_a": Variant(
        0.5,
        _swe("1x8", {"at_most": 0.5}, methods=[{"name": "end_sharing", "times": 3, **_MEASURED}]),
    ),
    "swe_m": Variant(
        0.5, [{"methods": [{"name": "split_sharing", "layer_sharing": "1x8", **_MEASURED}]}]
    ),
    "swe_long": Variant(0.5, _swe("1x8", 0.4)),
    "swe_reset": Variant(
        0.5, _swe("1x8", grow={"depth": "unshare", "optimizer_state": "reset"}, rewarmup_iters=100)
    ),
    "swe_2x4": Variant(0.5, _swe("2x4")),
    "swe_4x2": Variant(0.5, _swe("4x2")),
    # Growth in all of the steps, and finished full-size runs of equal FLOPs.
    "depth": Variant(1.0, _stacked(*_SHALLOW)),
    "ffn": Variant(1.0, _stacked(*_NARROW)),
    "length": Variant(1.0, _stacked(*_SHORT)),
    "compound": Variant(1.0, _stacked(*_COMPOUND)),
    "compound_carry": Variant(1.0, _stacked(*_COMPOUND, optimizer_state="carry")),
    "depth_twin": Variant("depth"),
    "ffn_twin": Variant("ffn"),
    "length_twin": Variant("length"),
    "compound_twin": Variant("compound"),
    # Does sharing help where depth makes training hard? Three times the layers, a third of the
    # steps.
    "deep": Variant(1 / 3, fields=_DEEP),
    "deep_swe_f": Variant(1 / 3, _swe("1x24"), _DEEP),
    "deep_post": Variant(1 / 3, fields=_DEEP_POST),
    "deep_post_swe_f": Variant(1 / 3, _swe("1x24"), _DEEP_POST),
}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data")
    data.add_argument("train", type=Path)
    data.add_argument("valid", type=Path)
    for verb in ("run", "table"):
        each = verbs.add_parser(verb)
        each.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VARIANTS))
        each.add_argument("--seed", type=int, default=1)
    plot = verbs.add_parser("plot")
    plot.add_argument("output", type=Path, metavar="PICTURE")
    plot.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.verb == "data":
        _make_data(args.train, args.valid)
        return
    if args.verb == "plot":
        done = [name for name in VARIANTS if _done(name, args.seed)]
        draw({name: load_run(_directory(name, args.seed)) for name in done}, args.output)
        return
    unknown = set(args.names) - set(VARIANTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(VARIANTS)}")
    names = args.names or list(VARIANTS)
    if args.verb == "table":
        print(_table(names, args.seed))
        return
    for name in names:
        _train(name, args.seed)


def _make_data(train: Path, valid: Path) -> None:
    """A corpus of sentences of each, and a vocabulary of 512 word pieces of the first."""
    script = ROOT / "tools" / "preprocess_data.py"
    tool: list[str | Path] = [sys.executable, script, "--split-sentences"]
    prefix = "data/study_bert"
    wordpiece = ["--train-tokenizer", "512", "--tokenizer-model", "wordpiece"]
    subprocess.run(
        [*tool, "--input", train.resolve(), "--output-prefix", prefix, *wordpiece],
        cwd=ROOT,
        check=True,
    )
    subprocess.run(
        [
            *tool,
            *("--input", valid.resolve(), "--output-prefix", f"{prefix}_valid"),
            *("--tokenizer", f"{prefix}-tokenizer.json"),
        ],
        cwd=ROOT,
        check=True,
    )


def _train(name: str, seed: int) -> None:
    """Train one run to its end."""
    print(f"== {name}, seed {seed}", flush=True)
    command = [sys.executable, ROOT / "pretrain_progressive.py", "--config", RUN_FILE]
    command += ["--run.name", name, "--run.output_dir", _directory(name, seed)]
    command += ["--run.seed", str(seed), "--train.train_iters", str(_steps(name))]
    command += overrides(VARIANTS[name])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in command], cwd=ROOT, env=env, check=True)


def overrides(variant: Variant) -> list[str]:
    """Of the run file, besides the steps."""
    fields = [f"--{path}={value}" for path, value in variant.fields.items()]
    return ["--stages", json.dumps(variant.stages), *fields]


def _steps(name: str) -> int:
    """How many a run takes."""
    full: int = yaml.safe_load(RUN_FILE.read_text())["train"]["train_iters"]
    length = VARIANTS[name].length
    if isinstance(length, str):
        grown = parse_run(["--config", str(RUN_FILE), *overrides(VARIANTS[length])])
        return twin_of(grown, "flops").config.train.train_iters
    return round(length * full)


def _directory(name: str, seed: int) -> Path:
    return RUNS / f"seed{seed}" / name


def _done(name: str, seed: int) -> bool:
    """Whether a run has finished."""
    status = _directory(name, seed) / "status.json"
    return status.is_file() and json.loads(status.read_text())["status"] == "done"


def _last(name: str, seed: int) -> dict[str, Any]:
    """All last numbers of a finished run."""
    if not _done(name, seed):
        raise SystemExit(f"{name}, seed {seed}, has not finished, and others are measured by it")
    with (_directory(name, seed) / "metrics.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    return {key: value for row in rows for key, value in row.items()}


def _table(names: list[str], seed: int) -> str:
    """What runs reached, and what they had cost."""
    lines = [
        "| run | steps | masked loss | accuracy | FLOPs | FLOPs of layers |",
        "|---|---|---|---|---|---|",
    ]
    whole = _last("full", seed)
    for name in names:
        if not _done(name, seed):
            continue
        last = _last(name, seed)
        cost = (f"{last[key] / whole[key]:.3f}" for key in ("flops_total", "flops_block"))
        numbers = f"{last['val_masked_lm_loss']:.4f} | {last['val_masked_lm_accuracy']:.2%}"
        lines.append(f"| {name} | {last['step']} | {numbers} | {' | '.join(cost)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
