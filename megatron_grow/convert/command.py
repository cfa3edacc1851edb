"""The command ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from megatron_grow.checkpoint.huggingface.files import side_files
from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.checkpoint.huggingface.writer import HuggingFaceWriter
from megatron_grow.checkpoint.layout import DTYPES, step_dir
from megatron_grow.checkpoint.legacy.writer import LegacyWriter
from megatron_grow.checkpoint.open import open_reader
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.torch_dist.writer import TorchDistWriter
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.errors import UserError
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.arguments import build_parser
from megatron_grow.convert.checks import check_layout, check_precision
from megatron_grow.convert.compare import compare, same_shape
from megatron_grow.convert.conversion import check_destination, convert
from megatron_grow.convert.forward import TEXT, compare_logits, read_text
from megatron_grow.convert.growths import grow
from megatron_grow.convert.inspection import check_digests, check_files, inspect
from megatron_grow.convert.preview import preview
from megatron_grow.convert.progress import Progress
from megatron_grow.convert.selection import open_weights
from megatron_grow.convert.side_files import imported_with, of_source
from megatron_grow.parallel.agreement import place, together
from megatron_grow.parallel.malloc import keep_freed_memory
from megatron_grow.parallel.parent import end_with_agent


def main(argv: list[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0 when what was asked for happened; 1 when two checkpoints that were compared
        differ; 2 for a mistake, a damaged checkpoint or a full disk.
    """
    args = build_parser().parse_args(argv)
    keep_freed_memory()
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        end_with_agent()
        # They meet rarely, after hours in a large conversion; torchrun ends all if one is gone.
        dist.init_process_group("gloo", timeout=timedelta(days=2))
    try:
        code = _VERBS[args.verb](args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in: inspect CKPT | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _complain("interrupted")
        return 128 + signal.SIGINT
    except (UserError, OSError) as error:
        _complain(error)
        return 2
    finally:
        if joins:
            dist.destroy_process_group()


def _tell(line: str) -> None:
    if _leads():
        print(line)


def _complain(reason: object) -> None:
    if _leads():
        print(f"error: {reason}", file=sys.stderr, flush=True)


def _leads() -> bool:
    """Whether this process is the one that speaks."""
    return place()[0] == 0


def _inspect(args: argparse.Namespace) -> int:
    source = open_reader(args.ckpt, once=True)
    for line in inspect(source):
        _tell(line)
    check_files(source)
    if args.check:
        count, notes = check_digests(source, Progress())
        for note in notes:
            _tell(f"note: {note}")
        _tell(f"all {count} stored tensors agree with the manifest" if count else "all is readable")
    else:
        _tell("nothing is missing (--check reads all of it)")
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.text and not args.forward:
        raise UserError(f"--text {args.text} is what --forward reads; pass --forward as well")
    text = read_text(args.text) if args.text else TEXT
    a, b = (open_reader(path, once=not args.forward) for path in (args.a, args.b))
    if args.forward and not same_shape(a, b):
        _tell("they have other shapes: only their functions are compared")
        return _compare_functions(a, b, text)
    found = compare(a, b, weights_only=args.weights_only, progress=Progress())
    for note in found.notes:
        _tell(f"note: {note}")
    for difference in found.differences:
        _tell(f"differs: {difference}")
    what = "weights" if args.weights_only else "training state"
    verdict = "not the same" if found.differences else "the same"
    _tell(f"{found.same} tensors are equal; {verdict} {what}")
    if args.forward:
        return _compare_functions(a, b, text)
    return 1 if found.differences else 0


def _compare_functions(a: Reader, b: Reader, text: str) -> int:
    apart, tolerance, read = compare_logits(a, b, text)
    same = apart <= tolerance
    _tell(
        f"logits on {read} differ by at most {apart:.2e} of the largest: "
        f"{'the same' if same else 'not the same'} function (tolerance {tolerance:.0e})"
    )
    return 0 if same else 1


def _grow(args: argparse.Namespace) -> int:
    # Layers that are copied are read more than once.
    source = together(lambda: open_weights(args.src, args.weights_only, once=False))
    return _to_megatron(grow(source, args.grow, args.seed, _tell), args)


def _reshard(args: argparse.Namespace) -> int:
    source = together(lambda: open_weights(args.src, args.weights_only, once=True))
    return _to_megatron(source, args)


def _import(args: argparse.Namespace) -> int:
    return _to_megatron(together(lambda: HuggingFaceReader(args.src)), args)


def _export(args: argparse.Namespace) -> int:
    source = together(lambda: open_reader(args.src, once=True))
    model = source.record.model_config
    precision = args.precision or source.record.precision
    check_precision(source, precision, args.allow_rounding or _rounded(source, precision))
    named = args.side_files
    beside = together(lambda: side_files(named) if named else of_source(source))
    if source.trains or source.left_behind:
        _tell("note: a Hugging Face model has no optimizer state; it stays in the source alone")
    if not beside:
        _tell("note: no tokenizer is known; --side-files names a directory with one")

    def make(directory: Path) -> Writer:
        return HuggingFaceWriter(
            directory,
            model,
            dict.fromkeys(source.tensors, DTYPES[precision]),
            family=args.family,
            side_files=beside,
            max_shard_size=int(args.max_shard_size * 1e9),
        )

    # A link to an empty directory stays, as it does for Megatron's formats.
    return _write(source, args.dst, args.dst.resolve(), make, None, {}, args)


def _rounded(source: Reader, precision: str) -> bool:
    """Whether training itself has rounded the weights that it computed with to ``precision``."""
    return precision == source.record.precision and source.of_a_run


def _to_megatron(source: Reader, args: argparse.Namespace) -> int:
    precision = args.precision or source.record.precision
    exact = source.trains or _rounded(source, precision)
    check_precision(source, precision, args.allow_rounding or exact)
    layout = ParallelConfig(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=args.virtual_pipeline_model_parallel_size,
    )
    check_layout(source.record.model_config, layout)
    record = replace(source.record, precision=precision, parallel=asdict(layout))
    if args.format == "torch" and source.trains:
        raise UserError(
            f"{source.path} has optimizer state, which is not written in the legacy format; pass "
            "--weights-only to leave it behind"
        )

    def make(directory: Path) -> Writer:
        if args.format == "torch":
            return LegacyWriter(directory, record, source.tensors, layout)
        return TorchDistWriter(
            directory,
            record,
            source.tensors,
            {key: source.kinds(key) for key in source.tensors},
            keeps_main=source.trains,
            tensor_parallel=layout.tensor_model_parallel_size,
        )

    final = step_dir(args.dst, record.step)
    beside = together(lambda: imported_with(source))
    return _write(source, args.dst, final, make, record.step, beside, args)


def _write(
    source: Reader,
    root: Path,
    final: Path,
    make: Callable[[Path], Writer],
    step: int | None,
    beside: dict[str, bytes],
    args: argparse.Namespace,
) -> int:
    """Convert, or tell what that would be."""
    leads = _leads()
    together(lambda: check_destination(root, final, source.path) if leads else None)
    if args.dry_run:
        for line in preview(source, make(final), threads=args.threads, verifies=not args.no_verify):
            _tell(line)
        return 0
    outcome = convert(
        source,
        final,
        make,
        step=step,
        side_files=beside,
        threads=args.threads,
        verifies=not args.no_verify,
        progress=Progress(leads),
    )
    if leads:
        size, seconds = outcome.stored_bytes / 1e9, outcome.seconds
        checked = f"verified in {outcome.check_seconds:.1f} s"
        if args.no_verify:
            checked = "not verified"
        print(f"{final}: {size:.2f} GB in {seconds:.1f} s ({size / seconds:.2f} GB/s), {checked}")
    return 0


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inspect": _inspect,
    "grow": _grow,
    "reshard": _reshard,
    "import-hf": _import,
    "export-hf": _export,
    "verify": _verify,
}
