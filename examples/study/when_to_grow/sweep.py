"""When to grow: what the rules choose, beside a sweep of growth steps and finished fixed-size runs.

  python tools/preprocess_data.py --input books.jsonl --output-prefix data/when_to_grow \
      --train-tokenizer 1024 --valid-fraction 0.02 --append-eod
  python examples/study/when_to_grow/sweep.py --seeds 1 2 3 [--train.train_iters 5000]

On one CPU core hours for each seed. A run that has finished is left as it is, one that was stopped
goes on. The report is in runs/when_to_grow/report; each run's metrics say when it grew and why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # a checkout need not be installed

from megatron_grow.config.run import parse_run

ROOT = Path(__file__).resolve().parents[3]
RUN_FILE = Path(__file__).with_name("run.yaml")
RUNS = ROOT / "runs" / "when_to_grow"
GROWTHS = (0.25, 0.5, 0.75, 0.8, 0.9)
"""Shares of the run after which it grows."""
LENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Of fixed-size runs, as shares of the run's steps."""


def stages(until: Any) -> list[dict[str, Any]]:
    """One layer ``until`` then, and its copies."""
    return [{"until": until, "model": {"num_layers": 1}}, {"grow": {"depth": "copying_stack"}}]


def rules(calibration: Path) -> dict[str, dict[str, Any]]:
    """Those that choose, by name."""
    common = {"calibration": str(calibration), "at_most": 0.95, "every": 100}
    return {
        "calibrated": {"rule": "calibrated", **common},
        "head_start": {"rule": "head_start", **common, "losses": "validation", "window": 10},
    }


def main() -> None:
    """Calibrate, train all runs and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args, given = parser.parse_known_args()
    iters = parse_run(["--config", str(RUN_FILE), *given]).train.train_iters
    runs = []
    for seed in args.seeds:
        options = [*given, "--run.seed", seed]
        for name, more in _variants(seed, options, iters).items():
            runs.append(RUNS / f"seed{seed}" / name)
            named = ["--run.name", name, "--run.output_dir", runs[-1]]
            _program("pretrain_progressive.py", "--config", RUN_FILE, *options, *named, *more)
    _program("tools/compare_runs.py", *runs, "--output", RUNS / "report")


def _variants(seed: int, options: list[Any], iters: int) -> dict[str, list[Any]]:
    """What the runs of a seed are given, by their names; first the calibration is made.

    Without a mixing time there is no run of ``calibrated``.
    """
    output = RUNS / f"calibration_seed{seed}"
    mixed = _program("tools/calibrate.py", RUN_FILE, "--output", output, *options, may=(0, 1)) == 0
    growths: dict[str, Any] = {f"grown_at_{share}": share for share in GROWTHS}
    growths |= rules(output / "calibration.yaml")
    if not mixed:
        del growths["calibrated"]
    found = {name: ["--stages", json.dumps(stages(until))] for name, until in growths.items()}
    for share in LENGTHS:
        steps = round(share * iters)
        found[f"fixed_{share}"] = ["--stages", "[]", "--train.train_iters", steps]
    return found


def _program(*command: Any, may: tuple[int, ...] = (0,)) -> int:
    """Run a program of this repository; its exit code, which is one of ``may``."""
    print("==", *command, flush=True)
    line = [sys.executable, *map(str, command)]
    code = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode
    if code not in may:
        sys.exit(f"{command[0]} ended with exit code {code}")
    return code


if __name__ == "__main__":
    main()
