"""`generate_with_l2_compress` against `model.generate`."""

import pytest
import torch

from kv_compression.kv_l2_dynamic import generate_with_l2_compress
from tests import oracle
from tests.models import batch, tiny
from tests.test_generation import LENGTHS, reference_tokens


class Tokenizer:
    """The two attributes that generation asks of a tokenizer."""

    eos_token_id = None
    pad_token_id = 0


def test_stops_at_every_stop_token_and_fills_with_padding():
    model = tiny()
    input_ids, mask = batch(LENGTHS)
    free = reference_tokens(model, input_ids, mask)
    model.generation_config.eos_token_id = [free[0][3], free[2][5]]
    model.generation_config.pad_token_id = 0
    expected = model.generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=10, do_sample=False
    )
    output, ttft_ms = generate_with_l2_compress(
        model,
        Tokenizer(),
        {"input_ids": input_ids, "attention_mask": mask},
        max_new_tokens=10,
        keep_ratio=1.0,
        prune_after=0,
    )
    assert torch.equal(output, expected)
    assert ttft_ms > 0


def test_generate_with_l2_compress_prunes_and_puts_the_attention_back():
    model = tiny()
    model.set_attn_implementation("eager")
    input_ids, _ = batch([50])
    whole, _ = generate_with_l2_compress(
        model, Tokenizer(), {"input_ids": input_ids}, keep_ratio=0.2
    )
    pruned, _ = generate_with_l2_compress(
        model, Tokenizer(), input_ids, keep_ratio=0.2, prune_after=50
    )
    assert torch.equal(whole, model.generate(input_ids, max_new_tokens=20, do_sample=False))
    assert not torch.equal(whole, pruned)
    assert model.config._attn_implementation == "eager"


def test_a_question_is_read_against_the_pruned_context():
    model, (input_ids, mask) = tiny(), batch([50, 33])
    arguments = {"keep_ratio": 0.3, "prune_after": 0, "max_new_tokens": 8}
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    both, _ = generate_with_l2_compress(
        model, Tokenizer(), inputs, **arguments, question_tokens=[7, 4]
    )
    for row, (length, question) in enumerate([(50, 7), (33, 4)]):
        alone = input_ids[row : row + 1, -length:]
        output, _ = generate_with_l2_compress(
            model, Tokenizer(), alone, **arguments, question_tokens=question
        )
        answer = output[0, length:].tolist()
        assert both[row, 50:].tolist() == answer
        assert answer == oracle.tokens("llama", alone, answer, length - question, 0.3)
    with pytest.raises(ValueError, match="at least one token of context"):
        generate_with_l2_compress(model, Tokenizer(), inputs, question_tokens=33)
