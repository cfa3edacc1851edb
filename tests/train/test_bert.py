"""A BERT that grows, from text to the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_grow.report.summary import write_report
from tests.data.corpora import run as preprocess
from tests.data.corpora import stdlib_files
from tests.train.command import launch, rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "bert_quickstart" / "run.yaml"
LOSSES = ("masked_lm_loss", "sentence_loss")
NUMBERS = (*LOSSES, "masked_lm_accuracy", "sentence_accuracy")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, smaller, on three files."""
    directory = tmp_path_factory.mktemp("bert")
    preprocess(
        input=[str(path) for path in stdlib_files(12)],
        output_prefix=str(directory / "text"),
        split_sentences=True,
        train_tokenizer=500,
        tokenizer_model="wordpiece",
        valid_fraction=0.25,
    )
    run = yaml.safe_load(EXAMPLE.read_text())
    run["train"] |= {"train_iters": 6, "eval_interval": 2, "eval_iters": 1, "log_interval": 1}
    run["train"] |= {"global_batch_size": 8, "micro_batch_size": 2}
    run["model"] |= {"hidden_size": 32, "ffn_hidden_size": 64}
    run["data"] = {
        "train_data_path": [str(directory / "text_text_sentence")],
        "valid_data_path": [str(directory / "text_valid_text_sentence")],
        "tokenizer": str(directory / "text-tokenizer.json"),
    }
    run["logging"] = {"tensorboard": False}
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


def test_rows_and_report_have_what_both_heads_learn(place: Path) -> None:
    for name, options in (("grown", ()), ("fixed", ("--stages", "[]"))):
        code, output, errors = launch(place, name, *options)
        assert code == 0, errors
        found = rows(place, name)
        trained = [("", row) for row in found if "lr" in row]
        evaluated = [("val_", row) for row in found if "val_loss" in row]
        assert len(trained) == 6 and len(evaluated) >= 3
        for prefix, row in (*trained, *evaluated):
            assert row[f"{prefix}loss"] == pytest.approx(sum(row[prefix + each] for each in LOSSES))
            assert 0.3 < row[f"{prefix}sentence_loss"] < 2
            assert all(0 <= row[prefix + each] <= 1 for each in NUMBERS if "accuracy" in each)
        assert f"(masked_lm {trained[0][1]['masked_lm_loss']:.4f} " in output
    report = write_report(place / "grown", place / "fixed", place / "report")
    assert report["growths"] == [
        {"step": 3, "from_layers": 1, "to_layers": 4, "what": "1 -> 4 layers"}
    ]
    assert sorted(report["others"]) == sorted(NUMBERS)
    for name in NUMBERS:
        assert (place / "report" / f"{name}.png").exists()
