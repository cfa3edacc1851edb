"""What is a BERT's own: heads that show in the tensors alone, old names, and which family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_grow.checkpoint.huggingface.config import choose_family, to_config
from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from tests.checkpoint.huggingface import models
from tests.checkpoint.huggingface.convert import export

Weights = dict[str, torch.Tensor]
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder."


def stored(path: Path) -> Weights:
    return load_file(path / "model.safetensors")


def edit(path: Path, change: Callable[[Weights], object]) -> Path:
    weights = stored(path)
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return models.save(models.build("bert"), tmp_path / "theirs")


def test_old_files(bert: Path, tmp_path: Path) -> None:
    """Norms of two letters, positions, and what the decoder shares: as published in 2018."""
    today = stored(bert)

    def age(weights: Weights) -> None:
        for name in today:
            if "LayerNorm" in name:
                old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
                weights[old.replace("LayerNorm.bias", "LayerNorm.beta")] = weights.pop(name)
        weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
        weights[f"{DECODER}weight"] = weights[WORDS].clone()
        weights[f"{DECODER}bias"] = weights["cls.predictions.bias"].clone()

    export(HuggingFaceReader(edit(bert, age)), tmp_path / "ours")
    again = stored(tmp_path / "ours")
    assert again.keys() == today.keys()
    assert all(torch.equal(again[name], weight) for name, weight in today.items())


REFUSED: dict[str, tuple[Callable[[Weights], object], str]] = {
    "another decoder": (
        lambda w: w.update({f"{DECODER}weight": w[WORDS] + 1e-3}),
        r"decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight, of which",
    ),
    "another bias": (
        lambda w: w.update({f"{DECODER}bias": w["cls.predictions.bias"] + 1e-3}),
        r"decoder\.bias differs from cls\.predictions\.bias, of which",
    ),
    "two names": (
        lambda w: w.update({"bert.embeddings.LayerNorm.gamma": torch.ones(32)}),
        r"LayerNorm\.gamma and bert\.embeddings\.LayerNorm\.weight are one tensor",
    ),
    "another head": (
        lambda w: w.update({"classifier.weight": torch.ones(2, 32)}),
        r"classifier\.weight is not known in bert",
    ),
    "half a sentence head": (
        lambda w: w.pop("bert.pooler.dense.weight"),
        r"bert\.pooler\.dense\.weight is missing",
    ),
    "no head for tokens": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("cls.predictions")],
        r"cls\.predictions\.bias is missing, and 4 more",
    ),
    "three sentence classes": (
        lambda w: w.update({"cls.seq_relationship.weight": torch.ones(3, 32)}),
        r"seq_relationship\.weight has shape \(3, 32\)",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_the_function_is_refused(what: str, bert: Path, tmp_path: Path) -> None:
    change, message = REFUSED[what]
    with pytest.raises(UserError, match=message) as caught:
        export(HuggingFaceReader(edit(bert, change)), tmp_path / "ours")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bert alone", "roberta"])
def test_a_pooler_without_a_sentence_head_is_left_out(name: str, tmp_path: Path) -> None:
    """As in RoBERTa's own files; the class for masked tokens does not read it."""
    model = models.build(name)
    path = models.save(model, tmp_path / "theirs")
    pooler = f"{model.base_model_prefix}.pooler.dense."
    more = {f"{pooler}weight": torch.ones(32, 32), f"{pooler}bias": torch.ones(32)}
    source = HuggingFaceReader(edit(path, lambda weights: weights.update(more)))
    kind = type(model).__name__
    assert source.notes == (f"tensor {pooler}bias is left out, and 1 more: {kind} has none",)
    export(source, tmp_path / "ours")
    again = models.load(tmp_path / "ours")
    assert type(again) is type(model)
    assert torch.equal(models.logits(again), models.logits(model))


@pytest.mark.parametrize("name", ["bert", "megatron-bert"])
def test_each_head_can_be_loaded_alone(name: str, tmp_path: Path) -> None:
    model = models.build(name)
    export(HuggingFaceReader(models.save(model, tmp_path / "theirs")), tmp_path / "ours")
    heads = ("MaskedLM", "NextSentencePrediction")
    for head, expected in zip(heads, models.outputs(model), strict=True):
        kind = getattr(transformers, type(model).__name__.replace("PreTraining", head))
        (found,) = models.outputs(kind.from_pretrained(tmp_path / "ours"))
        assert torch.equal(found, expected)


def test_sentence_order_is_remembered(bert: Path, tmp_path: Path) -> None:
    """The head is the same; what it says is not."""
    model = HuggingFaceReader(bert).record.model_config
    assert model.options["sentence_head"] == "next_sentence"
    ordered = replace(model, options={**model.options, "sentence_head": "sentence_order"})
    said = to_config(ordered, choose_family(ordered, None, {}), torch.float32, {})
    (bert / "config.json").write_text(json.dumps(said))
    assert HuggingFaceReader(bert).record.model_config == ordered
    assert type(models.load(bert)).__name__ == "BertForPreTraining"


BERT = ModelConfig(architecture="bert", vocab_size=96)


@pytest.mark.parametrize(
    ("options", "family", "kind"),
    [
        ({}, "bert", "BertForPreTraining"),
        ({"sentence_head": "none"}, "bert", "BertForMaskedLM"),
        ({"norm_position": "pre"}, "megatron-bert", "MegatronBertForPreTraining"),
        (
            {"norm_position": "pre", "sentence_head": "none"},
            "megatron-bert",
            "MegatronBertForMaskedLM",
        ),
        (
            {"sentence_head": "none", "first_position": 2, "token_types": 1},
            "roberta",
            "RobertaForMaskedLM",
        ),
    ],
)
def test_the_family_follows_from_the_options(
    options: dict[str, Any], family: str, kind: str
) -> None:
    model = replace(BERT, options=options)
    chosen = choose_family(model, None, {})
    assert (chosen.model_type, chosen.class_of(model)) == (family, kind)


NO_FAMILY: list[tuple[dict[str, Any], str]] = [
    ({"options": {"first_position": 2}}, r"roberta: model\.options\.sentence_head=next_sentence"),
    ({"options": {"pool_size": 2}}, r"bert: model\.options\.pool_size=2; megatron-bert: "),
    ({"activation": "swiglu"}, r"bert: model\.activation=swiglu"),
    ({"num_query_groups": 4}, r"bert: model\.num_query_groups=4"),
    ({"add_bias_linear": False}, r"bert: model\.add_bias_linear=False"),
    ({"normalization": "RMSNorm"}, r"bert: model\.normalization=RMSNorm"),
]


@pytest.mark.parametrize(("changes", "message"), NO_FAMILY)
def test_a_model_of_no_family_is_told_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"no Hugging Face family .*{message}"):
        choose_family(replace(BERT, **changes), None, {})


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_model_without_token_types_has_a_row_of_zeros(name: str, tmp_path: Path) -> None:
    """`transformers` gives every token a type."""
    model = models.build(name, type_vocab_size=1)
    model.base_model.embeddings.token_type_embeddings.weight.data.zero_()
    source = HuggingFaceReader(models.save(model, tmp_path / "theirs"))
    shape = source.record.model_config
    source.record.model.update(options={**shape.options, "token_types": 0})
    del source.tensors["embedding.tokentype_embeddings.weight"]
    assert logical_tensors(source.record.model_config).keys() == source.tensors.keys()
    export(source, tmp_path / "ours")
    ours, theirs = stored(tmp_path / "ours"), stored(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    again = models.load(tmp_path / "ours")
    assert torch.equal(models.logits(again), models.logits(model))


def test_roberta_must_pad_with_the_token_before_its_first_position() -> None:
    """`transformers` counts positions of tokens that are not padding, from its id on."""
    options = {"sentence_head": "none", "first_position": 2, "token_types": 1}
    model = replace(BERT, options=options)
    family = choose_family(model, None, {})
    assert to_config(model, family, torch.float32, {})["pad_token_id"] == 1
    assert to_config(model, family, torch.float32, {"pad_token_id": 1})["pad_token_id"] == 1
    with pytest.raises(UserError, match="first_position=2 with a tokenizer that pads with token 0"):
        to_config(model, family, torch.float32, {"pad_token_id": 0})
