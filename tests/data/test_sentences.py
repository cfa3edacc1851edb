"""Sentence splitting with a Punkt that is trained here or installed."""

from __future__ import annotations

import nltk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

from megatron_grow.data.preprocess.sentences import (
    SentenceSplitter,
    installed_splitter,
    train_splitter,
)

# Dr. is an abbreviation: it is always followed by a period, often inside a sentence.
TRAINING = "We met Dr. Jones. Then Dr. Smith came. I saw Dr. Jones again. He left. It rained. " * 40


@pytest.fixture(scope="module")
def splitter() -> SentenceSplitter:
    return train_splitter([TRAINING])


def test_learns_abbreviations(splitter):
    text = "Here is Dr. Brown. He left."
    assert splitter(text) == ["Here is Dr. Brown.", " He left."]
    assert train_splitter(["No abbreviation here."])(text) != splitter(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab. !?\n\t\"')é"), max_size=60))
def test_sentences_make_up_the_text(splitter, text):
    sentences = splitter(text)
    assert "".join(sentences) == text
    assert all(sentences)


def test_installed_model_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert installed_splitter("english") is None
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    save_punkt_params(PunktTrainer(TRAINING).get_params(), dir=str(folder))
    found = installed_splitter("english")
    assert found is not None
    assert found("Here is Dr. Brown. He left.") == ["Here is Dr. Brown.", " He left."]
