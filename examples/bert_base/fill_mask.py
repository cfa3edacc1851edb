"""What an exported BERT puts in place of [MASK]; needs `pip install 'megatron_grow[hf]'`.

python examples/bert_base/fill_mask.py out/bert "The capital of France is [MASK]."
"""

from __future__ import annotations

import sys

from transformers import pipeline


def main() -> None:
    """Print the five likeliest tokens, and how likely they are."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY TEXT")
    directory, text = sys.argv[1:]
    fill = pipeline("fill-mask", model=directory)
    mask = fill.tokenizer.mask_token
    if text.count(mask) != 1:
        sys.exit(f"{text!r} must have one {mask}")
    for guess in fill(text):
        print(f"{guess['score']:6.1%}  {guess['token_str']}")


if __name__ == "__main__":
    main()
