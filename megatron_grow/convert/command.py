"""The command ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import timedelta

import torch.distributed as dist

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.formats import FORMATS, Formats, other
from megatron_grow.checkpoint.open import open_reader
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.arguments import LAYOUT, build_parser
from megatron_grow.convert.compare import compare, same_shape
from megatron_grow.convert.forward import TEXT, compare_logits, read_text
from megatron_grow.convert.growths import grow
from megatron_grow.convert.inspection import check_digests, check_files, inspect
from megatron_grow.convert.preview import preview
from megatron_grow.convert.progress import Progress
from megatron_grow.convert.selection import WeightsOnly, open_weights
from megatron_grow.convert.target import target
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.strict_yaml import parse_yaml
from megatron_grow.parallel.agreement import leads, together
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
    if leads():
        print(line)


def _complain(reason: object) -> None:
    if leads():
        print(f"error: {reason}", file=sys.stderr, flush=True)


def _inspect(args: argparse.Namespace) -> int:
    source = open_reader(args.ckpt, also=_also(args), once=True)
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
    also, once = _also(args), not args.forward
    a, b = (open_reader(path, also=also, once=once) for path in (args.a, args.b))
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
    made = _format(args)
    source = together(lambda: open_weights(args.src, args.weights_only, _also(args), once=False))
    return _write(grow(source, args.grow, args.seed, _tell), made, args)


def _reshard(args: argparse.Namespace) -> int:
    made = _format(args)
    source = together(lambda: open_weights(args.src, args.weights_only, _also(args), once=True))
    return _write(source, made, args)


def _import(args: argparse.Namespace) -> int:
    made, read = _format(args), FORMATS.find(args.of, "format")
    return _write(together(lambda: read.open(args.src)), made, args)


def _export(args: argparse.Namespace) -> int:
    kind = FORMATS.find(args.format, "format")
    made = kind(**{option.name: getattr(args, option.name) for option in fields(kind)})
    source = together(lambda: open_reader(args.src, also=_also(args), once=True))
    notes = []
    if (source.trains or source.left_behind) and not made.optimizer_state:
        notes.append(f"a {made.title} model has no optimizer state; it stays in the source alone")
        source = WeightsOnly(source)
    return _write(source, made, args, notes)


def _format(args: argparse.Namespace) -> Format:
    """What is written, ``NAME`` or ``{format: NAME, ...options}``."""
    spec = parse_yaml(args.format, "--format")
    return FORMATS.make(spec if isinstance(spec, dict) else args.format, "--format")


def _also(args: argparse.Namespace) -> Formats:
    """Formats to recognise besides those that are built in."""
    return other(args.source_format, "--source-format")


def _write(
    source: Reader, made: Format, args: argparse.Namespace, notes: Sequence[str] = ()
) -> int:
    """Convert, or tell what that would be."""
    found = target(
        source,
        made,
        args.dst,
        precision=args.precision,
        allow_rounding=args.allow_rounding,
        layout=_layout(made, args),
        notes=notes,
        tell=_tell,
    )
    verifies, final = not args.no_verify, found.final
    if args.dry_run:
        for line in preview(
            found.source, found.writer(final), threads=args.threads, verifies=verifies
        ):
            _tell(line)
        return 0
    outcome = found.write(threads=args.threads, verifies=verifies)
    if leads():
        size, seconds = outcome.stored_bytes / 1e9, outcome.seconds
        checked = f"verified in {outcome.check_seconds:.1f} s"
        if not verifies:
            checked = "not verified"
        print(f"{final}: {size:.2f} GB in {seconds:.1f} s ({size / seconds:.2f} GB/s), {checked}")
    return 0


def _layout(made: Format, args: argparse.Namespace) -> ParallelConfig:
    """The layout that is asked for."""
    given = {name: size for name in LAYOUT if (size := getattr(args, name, None)) is not None}
    if given and not made.layouts:
        name, size = next(iter(given.items()))
        raise UserError(
            f"--{name.replace('_', '-')} {size} changes nothing: the {made.title} format is not "
            "cut for a layout"
        )
    return ParallelConfig(**given)


_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inspect": _inspect,
    "grow": _grow,
    "reshard": _reshard,
    "import": _import,
    "export": _export,
    "verify": _verify,
}
