"""Load a model in transformers and let it go on from a prompt."""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Print the prompt and what follows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="of the model")
    parser.add_argument("--prompt", default="def __init__(self")
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.directory)
    model = AutoModelForCausalLM.from_pretrained(args.directory)
    prompt = tokenizer(args.prompt, return_tensors="pt")
    generated = model.generate(
        input_ids=prompt.input_ids,
        attention_mask=prompt.attention_mask,
        max_new_tokens=args.tokens,
        do_sample=False,
    )
    print(tokenizer.decode(generated[0]))


if __name__ == "__main__":
    main()
