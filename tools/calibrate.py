"""Measure when a run should grow, by two short runs; docs/when_to_grow.md.

One is of fixed size, the other grows right after its warm-up. How many steps the grown model needs
to come up with the other tells how many must be left after the growth:

    python tools/calibrate.py run.yaml --output runs/calibration

Runs that are done are not run again, one that was stopped goes on. Options of the run go behind.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.config.run import RunConfig, parse_run, to_run_file
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.calibrate import calibration_of, proxies
from megatron_grow.report.runs import load_run
from megatron_grow.rules.calibration import Calibration
from megatron_grow.train.status import is_done

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Parse the command line, run what is not done, write the calibration; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_file", metavar="RUN_FILE", help="of the run that grows (YAML)")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets calibration.yaml, and the short runs with their run files",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a short run (default: a quarter of train_iters)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="a pair of runs each (default: run.seed)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="relative gap of validation losses at which runs count as mixed (default 0.01)",
    )
    parser.add_argument(
        "--launch",
        default=sys.executable,
        metavar="COMMAND",
        help='what starts a run, as "torchrun --nproc-per-node 8" (default: one process)',
    )
    parser.add_argument(
        "--prepare", action="store_true", help="write the run files, and print how to start them"
    )
    args, overrides = parser.parse_known_args()
    try:
        config = parse_run(["--config", args.run_file, *overrides])
        steps = args.steps or config.train.train_iters // 4
        runs: dict[str, list[RunConfig]] = {}
        for seed in args.seeds or [config.run.seed]:
            for name, proxy in proxies(config, steps, args.output, seed).items():
                runs.setdefault(name, []).append(proxy)
                _run(proxy, args.output, shlex.split(args.launch), start=not args.prepare)
        if args.prepare:
            return 0
        grown, fixed_size = (
            [load_run(Path(run.run.output_dir)) for run in runs[name]]
            for name in ("grown", "fixed_size")
        )
        found = calibration_of(config, grown, fixed_size, args.tolerance)
        return _tell(found, args.run_file, args.output / "calibration.yaml")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(proxy: RunConfig, output: Path, launch: list[str], *, start: bool) -> None:
    """Write the run file of a short run and run it, or say how to."""
    directory = Path(proxy.run.output_dir)
    run_file = output / f"{directory.name}.yaml"
    output.mkdir(parents=True, exist_ok=True)
    write_whole(run_file, [to_run_file(proxy).encode()])
    command = [*launch, str(ROOT / "pretrain_progressive.py"), "--config", str(run_file)]
    print(shlex.join(command), flush=True)
    if not start or is_done(directory):
        return
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    if done.returncode:
        raise UserError(f"{run_file}: the run ended with exit code {done.returncode}")


def _tell(found: Calibration, run_file: str, path: Path) -> int:
    """Write the calibration and say what it says; the exit code."""
    evidence = found.evidence
    within = f"within {100 * evidence['tolerance']:g} % of the fixed-size model"
    mixed = found.mixing_steps is not None
    if mixed:
        said = (
            f"The grown model was {within} {found.mixing_steps} steps after the growth (at the "
            f"least {found.mixing_steps_least}).\nSo a run of {found.train_iters} steps grows "
            f"after step {found.growth_step}, at the latest after {found.growth_step_most}."
        )
    else:
        said = (
            f"The grown model did not come {within} in {evidence['steps']} steps: no growth step.\n"
            "Longer runs may tell: --steps. The rule head_start can use this file as it is."
        )
    found.write(path, f"Made of short runs of {run_file} by tools/calibrate.py.\n{said}")
    print(said, path, sep="\n")
    return 0 if mixed else 1


if __name__ == "__main__":
    sys.exit(main())
