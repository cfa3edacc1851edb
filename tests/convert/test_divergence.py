"""Models side by side on one text, against what transformers says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder, get_bin_path

from megatron_grow.convert import divergence
from tests.convert.toy import command
from tools.compare_models import main

VOCABULARY, LENGTH, SEQUENCES = 90, 16, 7


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 and a wider, deeper one by transformers, the first as a checkpoint too; a text."""
    directory = tmp_path_factory.mktemp("family")
    shapes = {"small": (16, 1, VOCABULARY), "large": (32, 2, VOCABULARY), "other": (16, 1, 91)}
    for name, (size, depth, vocabulary) in shapes.items():
        torch.manual_seed(depth)
        config = transformers.GPT2Config(
            n_embd=size, n_layer=depth, n_head=4, n_positions=32, vocab_size=vocabulary
        )
        config.initializer_range = 0.3  # far from uniform
        transformers.GPT2LMHeadModel(config).save_pretrained(directory / name)
    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCABULARY
    )
    transformers.BertForMaskedLM(bert).save_pretrained(directory / "bert")
    assert command("import-hf", directory / "small", directory / "imported") == 0
    prefix = str(directory / "text_document")
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=DType.optimal_dtype(VOCABULARY))
    ids = np.random.RandomState(1).randint(0, VOCABULARY, SEQUENCES * LENGTH + 1)
    for part in np.split(ids, [40, 90]):
        builder.add_document(torch.from_numpy(part), [len(part)])
    builder.finalize(f"{prefix}.idx")
    return directory


def _by_transformers(family: Path, name: str, samples: torch.Tensor) -> torch.Tensor:
    model = transformers.GPT2LMHeadModel.from_pretrained(family / name).eval()
    with torch.no_grad():
        return model(samples[:, :-1]).logits.double()


def _spread(nats: torch.Tensor) -> tuple[float, float]:
    """Mean over tokens; standard error of the means of sequences."""
    means = nats.mean(dim=1).numpy()
    return float(nats.mean()), float(np.std(means, ddof=1) / math.sqrt(len(means)))


def test_against_transformers(
    family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All sequences of the text, three at a time."""
    monkeypatch.setattr(divergence, "_ENTRIES", 3 * (LENGTH + 1) * VOCABULARY)
    names = ["small", "large", "imported"]
    argv = [str(family / name) for name in names]
    argv += ["--data", str(family / "text_document"), "--seq-length", str(LENGTH)]
    assert main([*argv, "--output", str(family / "found.json")]) == 0
    found = json.loads((family / "found.json").read_text())
    assert (found["sequences"], found["seq_length"]) == (SEQUENCES, LENGTH)

    stored = np.fromfile(family / "text_document.bin", dtype=DType.optimal_dtype(VOCABULARY))
    text = torch.from_numpy(stored.astype(np.int64))
    samples = torch.stack([text[k * LENGTH : (k + 1) * LENGTH + 1] for k in range(SEQUENCES)])
    p, q = (torch.softmax(_by_transformers(family, name, samples), -1) for name in names[:2])
    for index, said in enumerate((p, q)):
        right = said.gather(-1, samples[:, 1:, None])[..., 0]
        assert found["losses"][index] == pytest.approx(_spread(-right.log()), rel=1e-5)
    for (i, a), (j, b) in (((0, p), (1, q)), ((1, q), (0, p))):
        nats = (a * (a / b).log()).sum(-1)
        assert nats.mean() > 0.1
        assert found["kl"][i][j] == pytest.approx(_spread(nats), rel=1e-5)
        # The same model in another format: nothing is between them.
        assert found["kl"][0][2] == pytest.approx([0.0, 0.0], abs=1e-6)
        assert found["kl"][2][1] == pytest.approx(found["kl"][0][1], rel=1e-5)
    printed = capsys.readouterr().out
    loss = found["losses"][1][0]
    assert (
        f"large: loss {loss:.4f} +- " in printed and f"perplexity {math.exp(loss):.2f}" in printed
    )


MISTAKES = {
    "too long": (["small"], ["--seq-length", "33"], "--seq-length 33 must be at least 1 and at"),
    "a short text": (["small"], ["--seq-length", "32", "--data", "short"], "--data: "),
    "no corpus": (["small"], ["--data", "absent"], "--data: absent.bin does not exist"),
    "another vocabulary": (["small", "other"], [], "knows 91 tokens and"),
    "no text": (["bert"], [], "is of architecture bert, which does not go on with a text"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(
    what: str, family: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, options, message = MISTAKES[what]
    monkeypatch.chdir(family)
    if what == "a short text":
        builder = IndexedDatasetBuilder(get_bin_path("short"), dtype=np.uint16)
        builder.add_document(torch.arange(64), [64])
        builder.finalize("short.idx")
    assert main([*models, "--data", "text_document", *options]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and message in errors
