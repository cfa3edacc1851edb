"""Compare models on one text: the perplexity of each, and KL(a || b) of each pair.

Models are checkpoints of any format that the converter reads, with one vocabulary: members of a
family, say. All run at once, in fp32, on one process.

    python tools/compare_models.py runs/family/releases/small/huggingface \\
        runs/family/releases/large/checkpoints --data data/valid_text_document
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.checkpoint.formats import other
from megatron_grow.checkpoint.open import open_reader
from megatron_grow.convert.divergence import check_members, lines, measure, seq_length
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.parallel.expected_warnings import ignore_expected_warnings


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure and print; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument(
        "--data", required=True, metavar="PREFIX", help="a corpus, by its prefix without suffix"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=65_536,
        metavar="N",
        help="predicted in all, in sequences spread over the corpus (default 65536)",
    )
    parser.add_argument(
        "--seq-length",
        type=int,
        metavar="N",
        help="default: the longest that all models were trained on",
    )
    parser.add_argument("--source-format", metavar="FORMAT", help="as of convert_checkpoint.py")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_args(argv)
    ignore_expected_warnings()
    from megatron_grow.data.excerpts import excerpts  # imports megatron-core

    try:
        also = other(args.source_format, "--source-format")
        sources = [open_reader(path, also=also) for path in args.models]
        check_members(sources)
        samples = excerpts(
            args.data,
            "--data",
            seq_length=seq_length(sources, args.seq_length),
            tokens=args.tokens,
            vocab_size=sources[0].record.model_config.vocabulary,
        )
        found = measure(sources, samples)
        if args.output:
            numbers = {**asdict(found), "paths": [str(path) for path in found.paths]}
            write_whole(args.output, [json.dumps(numbers, indent=2).encode() + b"\n"])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in lines(found):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
