"""What ``data.options`` of masked samples can say, and what is refused."""

from __future__ import annotations

import pytest

from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.registry import configured


def made(**options: object) -> MaskedOptions:
    return configured(MaskedOptions, "bert", options, "data.options")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "token"}, "data.options.mask is not an option of bert; known are longest_span, "),
        ({"masking": "words"}, "data.options.masking"),
        ({"masked_lm_prob": 0.0}, "masked_lm_prob=0.0 must be more than 0"),
        ({"masked_lm_prob": 1.0}, "masked_lm_prob=1.0 must be less than 1"),
        ({"span_prob": 0.0}, "span_prob=0.0 must be more than 0"),
        ({"longest_span": 0}, "longest_span=0 must be at least 1"),
        ({"short_seq_prob": 1.5}, "short_seq_prob=1.5 must be at most 1"),
        ({"mask_token_prob": 0.9, "random_token_prob": 0.2}, "together at most 1"),
    ],
)
def test_refused_with_the_field(options, message):
    with pytest.raises(UserError) as caught:
        made(**options)
    assert str(caught.value).startswith("data.options.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_most_masked():
    """BERT's max_predictions_per_seq: 15 % of 512 and of 128, rounded; never none."""
    assert [made().most_masked(length) for length in (512, 128, 2)] == [77, 19, 1]
