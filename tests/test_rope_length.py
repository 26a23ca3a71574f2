"""Rotations that depend on the length: by row, by request, and as `model.generate` has them."""

import pytest
import torch

from kv_compression import decode_graph, rope_length
from kv_compression.generation import generate
from kv_compression.kv_l2_dynamic import generate_with_l2_compress
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from tests.models import batch, tiny

pytestmark = pytest.mark.model


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + n for n in range(8)],
    "original_max_position_embeddings": 64,
}


def dynamic(**options):
    return tiny(max_position_embeddings=64, rope_parameters=DYNAMIC, **options)


def longrope(architecture="llama", **options):
    return tiny(
        architecture, rope_parameters=LONGROPE, original_max_position_embeddings=64, **options
    )


def phi3():
    return longrope("phi3")


MODELS = [dynamic, longrope, phi3]


def ours(model, input_ids, mask=None, **options):
    options = {"backend": "sdpa", "max_new_tokens": 8} | options
    return generate(model, input_ids, mask, **options).new_tokens


@pytest.mark.parametrize("prompt", [40, 58, 64, 65, 90])
@pytest.mark.parametrize("make", MODELS)
def test_tokens_are_those_of_generate_on_either_side_of_the_switch_and_across(make, prompt):
    input_ids, mask = batch([prompt], seed=3)
    expected = make().generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=8, do_sample=False
    )
    result, _ = generate_with_l2_compress(make(), None, input_ids, 8, keep_ratio=1.0)
    assert result.tolist() == expected.tolist()


@pytest.mark.parametrize("name", [None, "l2", "expected_attention"])
@pytest.mark.parametrize("make", MODELS)
def test_a_row_is_the_same_beside_a_longer_one_and_after_it(make, name):
    """60 tokens and their answer cross the switch at 64; 30 stay below, 90 stand above."""
    model = make()
    lengths = [90, 30, 60]
    input_ids, mask = batch(lengths, seed=4)
    pruning = name and Pruning(method_class(name)(), 0.5, prune_after=0)
    together = ours(model, input_ids, mask, pruning=pruning)
    for row, length in enumerate(lengths):
        alone = input_ids[row : row + 1, -length:]
        assert ours(model, alone, pruning=pruning)[0] == together[row]
        assert ours(make(), alone, pruning=pruning)[0] == together[row]


@pytest.mark.parametrize("make", MODELS)
def test_reading_a_prompt_in_parts_changes_nothing(make):
    input_ids, mask = batch([70, 64, 30], seed=5)
    expected = ours(make(), input_ids, mask)
    assert ours(make(), input_ids, mask, question_tokens=[10, 9, 4]) == expected
    assert ours(make(), input_ids, mask, prefill_chunk=48) == expected


@pytest.mark.parametrize("make", MODELS)
def test_a_request_leaves_the_model_as_if_it_had_seen_no_text(make):
    model, (input_ids, _) = make(), batch([90])
    rotary = model.base_model.rotary_emb
    before = rotary.inv_freq.clone(), rotary.max_seq_len_cached, rotary.rope_type
    ours(model, input_ids)
    assert torch.equal(rotary.inv_freq, before[0])
    assert (rotary.max_seq_len_cached, rotary.rope_type) == before[1:]
    assert "forward" not in vars(rotary)


def test_the_kind_is_read_from_the_config():
    assert rope_length.kind(tiny().config) is None
    assert rope_length.kind(dynamic().config) == "dynamic"
    config = tiny().config
    config.rope_parameters = {"full_attention": LONGROPE, "sliding_attention": {}}
    assert rope_length.kind(config) == "longrope"


def test_a_rotation_whose_place_is_not_known_is_refused():
    model = dynamic()
    model.base_model.rotary_emb.rope_type = "of its own"
    with pytest.raises(ValueError, match="dynamic rotation is not known"):
        ours(model, batch([5])[0])


def test_steps_of_such_a_model_cannot_be_captured():
    problem = decode_graph.reason_model_unsupported(dynamic(), batch=1)
    assert problem == "the host chooses the frequencies of dynamic rotary positions at every step"
    assert decode_graph.reason_model_unsupported(tiny(), batch=1) is None


def test_lengths_at_which_generate_forgets_the_prompt_are_told():
    model = phi3()
    assert (
        rope_length.reason_lengths_unsupported(model, 60, 5) is None
    )  # the 65th token is never read
    assert "change at 65 tokens" in rope_length.reason_lengths_unsupported(model, 60, 6)
    assert "change at 65 tokens" in rope_length.reason_lengths_unsupported(model, 64, 2)
    assert rope_length.reason_lengths_unsupported(model, 65, 99) is None
    assert rope_length.reason_lengths_unsupported(longrope(), 60, 99) is None
    assert rope_length.reason_lengths_unsupported(tiny("phi3"), 60, 9999) is None
