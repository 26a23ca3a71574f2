"""`kv_compression.generate`, the library's public face, and what users do around it."""

import pytest
import torch

import kv_compression
from kv_compression import methods
from kv_compression.cache import l2_compress
from kv_compression.kv_l2_dynamic import generate_with_l2_compress
from tests.models import batch, tiny

LENGTHS = (23, 40, 1)


def inputs_of(lengths):
    input_ids, mask = batch(lengths)
    return {"input_ids": input_ids, "attention_mask": mask}


@pytest.mark.parametrize("method", methods.names())
def test_with_everything_kept_tokens_are_those_of_model_generate(method):
    model, inputs = tiny(), inputs_of(LENGTHS)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    found = kv_compression.generate(model, inputs, method=method, keep_ratio=1.0, max_new_tokens=6)
    assert torch.equal(found, expected)


def test_methods_their_parameters_and_budgets_change_what_is_kept():
    model, inputs = tiny(), inputs_of([60])
    calls = [
        {"method": "l2"},
        {"method": "l2", "keep": "high"},
        {"method": "snapkv", "window": 4},
        {"method": "window", "keep_tokens": 5},
    ]
    outputs = [
        kv_compression.generate(model, inputs, keep_ratio=0.2, max_new_tokens=12, **call)
        for call in calls
    ]
    assert all(output.shape == (1, 72) for output in outputs)
    assert len({tuple(output[0].tolist()) for output in outputs}) == len(calls)


def test_a_streamer_gets_the_prompt_and_each_token():
    class Streamer:
        def __init__(self):
            self.got = []

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.got.append("end")

    model, streamer = tiny(), Streamer()
    output = kv_compression.generate(model, batch([9])[0], streamer=streamer, max_new_tokens=4)
    assert streamer.got == [*output[0].tolist(), "end"]
    with pytest.raises(ValueError, match="one prompt at a time, not 3"):
        kv_compression.generate(model, inputs_of(LENGTHS), streamer=streamer)


def test_what_cannot_be_is_told():
    model, inputs = tiny(), inputs_of([9])
    with pytest.raises(ValueError, match="h2o, keydiff"):
        kv_compression.generate(model, inputs, method="magic")
    with pytest.raises(TypeError, match="window"):
        kv_compression.generate(model, inputs, method="l2", window=3)


def test_generate_with_l2_compress_says_where_nothing_is_pruned():
    model, inputs = tiny(), inputs_of([9])
    with pytest.warns(UserWarning, match="9 tokens are fewer than prune_after=2048"):
        generate_with_l2_compress(model, None, inputs, max_new_tokens=2)


@pytest.mark.parametrize("skip_layers", [(), (0,)])
def test_model_generate_goes_on_from_a_compressed_cache(skip_layers):
    model, (input_ids, _) = tiny(), batch([30])
    with torch.no_grad():
        full = model(input_ids[:, :-1], use_cache=True).past_key_values
    compressed = l2_compress(full, keep_ratio=0.5, prune_after=0, skip_layers=skip_layers)
    output = model.generate(
        input_ids, past_key_values=compressed, max_new_tokens=6, do_sample=False
    )
    assert output.shape == (1, 36)
    whole = l2_compress(full, keep_ratio=1.0, prune_after=0)
    same = model.generate(input_ids, past_key_values=whole, max_new_tokens=6, do_sample=False)
    assert torch.equal(same, model.generate(input_ids, max_new_tokens=6, do_sample=False))


def test_what_a_model_says_besides_to_its_cache_changes_nothing():
    model, (input_ids, _) = tiny(), batch([30])
    with torch.no_grad():
        full = model(input_ids, use_cache=True).past_key_values
    one, other = (l2_compress(full, keep_ratio=0.5, prune_after=0) for _ in range(2))
    new = torch.randn(1, full.layers[0].keys.shape[1], 1, full.layers[0].keys.shape[3])
    for mine, its in zip(
        one.update(new, new, 0), other.update(new, new, 0, {"sin": 1}), strict=True
    ):
        assert torch.equal(mine, its)


def test_several_new_tokens_over_layers_of_different_lengths_are_refused():
    model, (input_ids, _) = tiny(), batch([30])
    with torch.no_grad():
        full = model(input_ids[:, :-3], use_cache=True).past_key_values
    compressed = l2_compress(full, keep_ratio=0.5, prune_after=0, skip_layers=(0,))
    with pytest.raises(NotImplementedError, match="one new token at a time"):
        model.generate(input_ids, past_key_values=compressed, max_new_tokens=6)
