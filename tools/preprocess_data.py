"""Turn raw text into a tokenized corpus in Megatron's indexed format.

  python tools/preprocess_data.py --input books.jsonl --output-prefix data/books --append-eod

writes data/books_text_document.bin, .idx and .json; a run file names it as
train_data_path: [data/books_text_document].
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.inputs.errors import UserError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; names are the fields of ``PreprocessConfig``."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,  # defaults are PreprocessConfig's
    )
    add = parser.add_argument_group("input").add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files of JSON (an object a line, or objects in an array), of text (one document "
        "each) or of Parquet, told by their content, also as .gz, .bz2, .xz, .zst; or directories, "
        "read recursively",
    )
    add("--json-key", metavar="KEY", help="key or column of the text (default: text)")
    add(
        "--glob",
        action="append",
        metavar="PATTERN",
        help="names of files taken from a directory; repeatable (default: all that can be read)",
    )
    add(
        "--exclude",
        action="append",
        metavar="PATTERN",
        help="names of files or folders left out of a directory; repeatable",
    )
    add(
        "--on-bad-line",
        choices=["stop", "skip"],
        help="what a document does that cannot be read: stop (default), or be left out, counted, "
        "and the first ten named",
    )
    add = parser.add_argument_group("output").add_argument
    add(
        "--output-prefix",
        required=True,
        metavar="PREFIX",
        help="writes PREFIX_KEY_document.{bin,idx,json}",
    )
    add(
        "--valid-fraction",
        type=float,
        metavar="F",
        help="hold out this share of documents, evenly spaced, as PREFIX_valid_KEY_document",
    )
    add("--overwrite", action="store_true", help="replace an existing output")
    group = parser.add_argument_group("tokens")
    add = group.add_mutually_exclusive_group().add_argument
    add(
        "--tokenizer",
        metavar="NAME",
        help="bytes (default), gpt2 (with --vocab-file and --merge-file), or the path of a Hugging "
        "Face tokenizer.json or of a WordPiece vocabulary, vocab.txt",
    )
    add(
        "--train-tokenizer",
        type=int,
        metavar="N",
        help="train a tokenizer of N tokens on the input, write PREFIX-tokenizer.json, use it",
    )
    add = group.add_argument
    add(
        "--tokenizer-model",
        choices=["bpe", "wordpiece"],
        help="what is trained: a byte-level BPE (default) or a WordPiece vocabulary with BERT's "
        "special tokens",
    )
    add("--cased", action="store_true", help="train a WordPiece vocabulary that keeps case")
    add("--vocab-file", metavar="FILE", help="vocab.json of gpt2")
    add("--merge-file", metavar="FILE", help="merges.txt of gpt2")
    add(
        "--append-eod",
        action="store_true",
        help="end every document with the end-of-document token",
    )
    add(
        "--split-sentences",
        action="store_true",
        help="make every sentence a sequence (PREFIX_KEY_sentence), by nltk's Punkt: its model if "
        "installed, else one trained on the input",
    )
    add("--language", metavar="NAME", help="whose Punkt model to look for (default: english)")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that encode; the output does not depend on it "
        "(default: one for each core, here %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exits through the clean-up
    warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    config = None
    try:
        from rich.console import Console

        from megatron_grow.data.preprocess.config import PreprocessConfig
        from megatron_grow.data.preprocess.run import preprocess

        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        config = PreprocessConfig(**vars(args))
        preprocess(config, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        kept = config.kept if config and config.staging.exists() else "nothing unfinished is left"
        print(f"interrupted; {kept}", file=sys.stderr)
        return 143 if isinstance(error, SystemExit) else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
