"""Stand in for someone else's model: train a toy Llama with transformers alone, and save it."""

from __future__ import annotations

import argparse
import sysconfig
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BATCH, LENGTH, END = 16, 128, "<|endoftext|>"


def main() -> None:
    """Train on the Python standard library's own sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the model is saved")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    sources = sorted(map(str, Path(sysconfig.get_paths()["stdlib"]).glob("*.py")))
    learned = ByteLevelBPETokenizer()
    learned.train(sources, vocab_size=1024, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, eos_token=END)
    texts = (Path(path).read_text(errors="ignore") for path in sources)
    wanted = args.steps * BATCH * LENGTH
    ids = list(islice(chain.from_iterable(learned.encode(text).ids for text in texts), wanted))

    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=192,
            max_position_embeddings=LENGTH,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = len(ids) // (BATCH * LENGTH)
    for step, batch in enumerate(torch.tensor(ids[: steps * BATCH * LENGTH]).split(BATCH * LENGTH)):
        tokens = batch.view(BATCH, LENGTH)
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(args.directory)
    tokenizer.save_pretrained(args.directory)


if __name__ == "__main__":
    main()
