"""`enable_flex_attention_dense_causal`: sdpa's logits and tokens, and all as before once undone."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from flex_pipeline import patching
from flex_pipeline.patching import enable_flex_attention_dense_causal
from kv_compression.layout import Layout
from tests.models import CONFIGS, batch, tiny
from tests.reference import tolerance

pytestmark = pytest.mark.model


TERMS = 3 * 300  # of the longest sum, over the tokens, in three layers
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def logits(model, input_ids, mask=None, **options):
    with torch.inference_mode():
        return model(input_ids, attention_mask=mask, **options).logits


def tokens(model, input_ids, mask, **options):
    output = model.generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **options
    )
    return output[:, input_ids.shape[1] :].tolist()


def padded_right(input_ids, mask):
    lengths = mask.sum(dim=1).tolist()
    right_ids, right_mask = torch.zeros_like(input_ids), torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        right_ids[row, :length] = input_ids[row, mask[row].bool()]
        right_mask[row, :length] = 1
    return right_ids, right_mask


@pytest.mark.parametrize(
    ("architecture", "kv_heads"), [*((name, 2) for name in CONFIGS), ("llama", 4), ("llama", 1)]
)
def test_logits_and_tokens_are_those_of_sdpa(architecture, kv_heads):
    model = tiny(architecture, kv_heads=kv_heads)
    model.set_attn_implementation("sdpa")
    left = batch([37, 5, 131, 1])
    inputs = [(left[0][2:3], None), left, padded_right(*left)]
    expected = [logits(model, *pair) for pair in inputs]
    expected_tokens = tokens(model, *left)
    with enable_flex_attention_dense_causal(model) as patch:
        assert patch.kind == {4: "MHA", 2: "GQA", 1: "MQA"}[kv_heads]
        assert (patch.query_heads, patch.key_value_heads) == (4, kv_heads)
        assert patch.layers == tuple(f"model.layers.{i}.self_attn" for i in range(3))
        assert f"in place of sdpa; {patch.kind}" in str(patch)
        for (input_ids, mask), wanted in zip(inputs, expected, strict=True):
            are_tokens = mask.bool() if mask is not None else ...
            error = (logits(model, input_ids, mask) - wanted)[are_tokens].abs().max()
            assert error < tolerance(wanted, TERMS)
        assert tokens(model, *left) == expected_tokens
        static = {"cache_implementation": "static", "disable_compile": True}
        assert tokens(model, *left, **static) == expected_tokens
        assert tokens(model, *left, use_cache=False) == expected_tokens
    assert model.config._attn_implementation == "sdpa"
    after = [logits(model, *pair) for pair in inputs]
    assert all(map(torch.equal, after, expected))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_padding_anywhere_and_chunks(data):
    """A chunk after a cache, under an attention mask with holes."""
    length = data.draw(st.integers(2, 300))
    cut = data.draw(st.integers(1, length - 1))
    seed = data.draw(st.integers(0, 99))
    model = tiny(layers=2)
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, 512, (2, length), generator=generator)
    mask = torch.rand(2, length, generator=generator) < 0.8

    def run():
        with torch.inference_mode():
            first = model(input_ids[:, :cut], attention_mask=mask[:, :cut].long())
            second = model(
                input_ids[:, cut:],
                attention_mask=mask.long(),
                past_key_values=first.past_key_values,
            )
        # A query that sees no token at all means nothing in either.
        seen = mask.cumsum(dim=1) > 0
        return torch.cat([first.logits, second.logits], dim=1)[mask & seen]

    model.set_attn_implementation("sdpa")
    expected = run()
    with enable_flex_attention_dense_causal(model):
        result = run()
    assert result.shape == expected.shape
    if expected.numel():
        assert (result - expected).abs().max() < tolerance(expected, TERMS)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_what_attention_returns_is_contiguous():
    """As of transformers' own functions: some models take a view of it."""
    query, key, value = torch.randn(1, 4, 9, 16), *torch.randn(2, 1, 2, 9, 16)
    mask = Layout(None, 9, 9, query.device).block_mask
    output, _ = patching._attend(torch.nn.Module(), query, key, value, mask)
    assert output.shape == (1, 9, 4, 16)
    assert output.is_contiguous()


def test_a_static_cache_and_a_compiled_forward():
    model = tiny(layers=1)
    inputs = batch([37, 5, 131])
    model.set_attn_implementation("sdpa")
    expected = tokens(model, *inputs)
    with enable_flex_attention_dense_causal(model):
        assert tokens(model, *inputs, cache_implementation="static") == expected


def test_sliding_window_layers_keep_their_window():
    model = tiny("mistral", sliding_window=16)
    model.set_attn_implementation("sdpa")
    input_ids, mask = batch([37, 150, 1])
    expected, expected_tokens = logits(model, input_ids, mask), tokens(model, input_ids, mask)
    full = tiny("mistral")
    full.load_state_dict(model.state_dict())
    assert (logits(full, input_ids, mask) - expected)[mask.bool()].abs().max() > 0.1
    with enable_flex_attention_dense_causal(model):
        error = (logits(model, input_ids, mask) - expected)[mask.bool()].abs().max()
        assert error < tolerance(expected, TERMS)
        assert tokens(model, input_ids, mask) == expected_tokens


def test_packed_sequences_do_not_see_each_other():
    model = tiny()
    model.set_attn_implementation("sdpa")
    input_ids, _ = batch([150])
    position_ids = torch.cat([torch.arange(90), torch.arange(60)])[None]
    options = {"position_ids": position_ids, "use_cache": False}
    expected = logits(model, input_ids, **options)
    with enable_flex_attention_dense_causal(model):
        result = logits(model, input_ids, **options)
    assert (result - expected).abs().max() < tolerance(expected, TERMS)
    alone = logits(model, input_ids[:, 90:])
    assert (result[:, 90:] - alone).abs().max() < tolerance(expected, TERMS)


def test_a_model_of_another_kind():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    input_ids, mask = batch([20, 7])
    expected = logits(model, input_ids, mask)
    with enable_flex_attention_dense_causal(model) as patch:
        assert patch.layers == ("transformer.h.0.attn", "transformer.h.1.attn")
        assert patch.kind == "MHA"
        error = (logits(model, input_ids, mask) - expected)[mask.bool()].abs().max()
    assert error < tolerance(expected, 2 * 256)


def test_patches_end_in_any_order_and_an_error_ends_them():
    model = tiny()
    model.set_attn_implementation("eager")

    def now():
        return model.config._attn_implementation

    first = enable_flex_attention_dense_causal(model)
    second = enable_flex_attention_dense_causal(model)
    second.undo()
    assert now() == "flex_dense_causal"
    first.undo()
    assert now() == "eager"
    third = enable_flex_attention_dense_causal(model)
    first.undo()
    assert now() == "flex_dense_causal"
    with pytest.raises(ValueError, match="finished"), third:
        logits(model, torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 1, 3, 3))
    assert now() == "eager"
    with enable_flex_attention_dense_causal(model):
        model.set_attn_implementation("sdpa")
    assert now() == "sdpa"


def refused_models():
    spread = tiny()
    spread.lm_head.to("meta")
    return {
        "several devices": spread,
        "encoder-decoder": T5ForConditionalGeneration(
            T5Config(vocab_size=512, d_model=64, num_layers=1, num_heads=4, d_ff=64)
        ),
        "both ways": BertModel(BertConfig(**SMALL)),
        "be chosen": BloomForCausalLM(
            BloomConfig(vocab_size=512, hidden_size=64, n_layer=1, n_head=4)
        ),
        "caps its": Gemma2ForCausalLM(
            Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16, pad_token_id=0)
        ),
        "sinks": GptOssForCausalLM(
            GptOssConfig(
                **SMALL, num_key_value_heads=2, head_dim=16, pad_token_id=0, num_local_experts=2
            )
        ),
        "linear_attention": Qwen3NextForCausalLM(
            Qwen3NextConfig(
                **SMALL, num_experts=2, layer_types=["linear_attention", "full_attention"]
            )
        ),
    }


def test_what_cannot_be_patched_is_refused_and_left_alone():
    for problem, model in refused_models().items():
        before = model.config._attn_implementation
        with pytest.raises(ValueError, match=problem):
            enable_flex_attention_dense_causal(model)
        assert model.config._attn_implementation == before


def test_what_flex_is_not_given_is_refused_in_the_forward():
    model = tiny(attention_dropout=0.5)
    input_ids, _ = batch([10])
    with enable_flex_attention_dense_causal(model):
        with pytest.raises(ValueError, match=r"shape \(B, S\)"):
            logits(model, input_ids, torch.zeros(1, 1, 10, 10))
        model.train()
        with pytest.raises(ValueError, match="dropout"):
            logits(model, input_ids)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_sdpa_on_gpu(dtype):
    model = tiny(heads=8, kv_heads=2, dtype=dtype).cuda()
    model.set_attn_implementation("sdpa")
    input_ids, mask = (tensor.cuda() for tensor in batch([37, 5, 301, 1]))
    expected, expected_tokens = logits(model, input_ids, mask), tokens(model, input_ids, mask)
    with enable_flex_attention_dense_causal(model):
        error = (logits(model, input_ids, mask) - expected)[mask.bool()].abs().max()
        assert error < (5e-2 if dtype == torch.bfloat16 else 1e-2) * expected.abs().max()
        if dtype == torch.float32:
            assert tokens(model, input_ids, mask) == expected_tokens
            assert tokens(model, input_ids, mask, cache_implementation="static") == expected_tokens
