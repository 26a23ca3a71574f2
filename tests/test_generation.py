"""Tokens against `model.generate` and against a float64 model that knows nothing of caches."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kv_compression import attention, attention_hook
from kv_compression.attention import backend_of
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate, stop_token_ids
from kv_compression.methods.l2 import Method as L2
from kv_compression.prefill.prompt_chunks import padding_before
from kv_compression.pruning import Pruning
from tests import oracle
from tests.models import CONFIGS, batch, tiny
from tests.reference import tolerance

pytestmark = pytest.mark.model


CPU_BACKENDS = ["eager", "sdpa", "flex"]
LENGTHS = [37, 5, 131, 1]


def reference_tokens(model, input_ids, attention_mask=None, new_tokens=10):
    """What `model.generate` says, one list a row."""
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=new_tokens,
        do_sample=False,
    )
    return output[:, input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_without_pruning_and_at_ratio_1_tokens_are_those_of_generate(architecture, backend):
    model = tiny(architecture)
    input_ids, mask = batch(LENGTHS)
    expected = reference_tokens(model, input_ids, mask)
    assert len({tuple(row) for row in expected}) == len(LENGTHS)
    for pruning in (None, Pruning(L2(), keep_ratio=1.0, prune_after=0)):
        result = generate(
            model, input_ids, mask, backend=backend, max_new_tokens=10, pruning=pruning
        )
        assert result.new_tokens == expected


@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "flash2"])
@pytest.mark.parametrize("heads", [(6, 2), (4, 1)])
@pytest.mark.parametrize("questions", [None, [9, 1, 30, 2]])
def test_a_pruned_row_is_the_same_in_a_batch_and_alone(heads, backend, questions, monkeypatch):
    monkeypatch.setattr(attention.backend("flash2"), "check", lambda *_: None)
    model = tiny(heads=heads[0], kv_heads=heads[1])
    lengths = [37, 5, 131, 3]
    input_ids, mask = batch(lengths)
    options = {
        "backend": backend,
        "max_new_tokens": 8,
        "pruning": Pruning(L2(), keep_ratio=0.4, prune_after=6, skip_layers=(0, 2)),
    }
    together = generate(model, input_ids, mask, question_tokens=questions, **options)
    for row, length in enumerate(lengths):
        alone = input_ids[row : row + 1, -length:]
        question = None if questions is None else [questions[row]]
        single = generate(model, alone, question_tokens=question, **options)
        assert single.new_tokens[0] == together.new_tokens[row]


ODD_LAYERS = {
    "diffllama": {},  # attends twice
    "hrm_text": {},  # a module writes to several layers of the cache
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},  # takes views
}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", ODD_LAYERS)
def test_layers_that_attend_in_ways_of_their_own(kind, backend):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=None,
        initializer_range=0.2,
        **ODD_LAYERS[kind],
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    input_ids, mask = batch([40, 23], seed=2)
    options = {"backend": backend, "max_new_tokens": 6}
    whole = generate(model, input_ids, mask, **options)
    assert whole.new_tokens == reference_tokens(model, input_ids, mask, new_tokens=6)
    pruning = Pruning(L2(), 0.5, prune_after=0)
    together = generate(model, input_ids, mask, pruning=pruning, **options)
    assert set(together.stored_tokens) == {20}
    alone = generate(model, input_ids[1:, 17:], pruning=pruning, **options)
    assert alone.new_tokens[0] == together.new_tokens[1]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_questions_in_a_chunk_of_their_own_change_nothing_without_pruning(backend):
    model = tiny()
    lengths = [37, 5, 131, 2]
    input_ids, mask = batch(lengths)
    expected = reference_tokens(model, input_ids, mask)
    for pruning in (None, Pruning(L2(), keep_ratio=1.0, prune_after=0)):
        for questions in ([1, 1, 1, 1], [36, 4, 2, 1]):
            result = generate(
                model,
                input_ids,
                mask,
                backend=backend,
                max_new_tokens=10,
                pruning=pruning,
                question_tokens=questions,
            )
            assert result.new_tokens == expected


def test_refuses_questions_that_leave_no_context():
    input_ids, mask = batch([5, 9])
    for questions in ([5, 2], [0, 2], [1]):
        with pytest.raises(ValueError, match=r"at least one token|must name 2 rows"):
            generate(
                tiny(), input_ids, mask, backend="sdpa", max_new_tokens=1, question_tokens=questions
            )


def test_a_budget_in_tokens_counts_each_rows_own():
    model = tiny()
    input_ids, mask = batch([40, 30, 7])
    pruning = Pruning(L2(), prune_after=0, keep_tokens=10)
    result = generate(model, input_ids, mask, backend="sdpa", max_new_tokens=4, pruning=pruning)
    assert result.stored_tokens == [10] * 3
    for row, length in enumerate([40, 30, 7]):
        alone = input_ids[row : row + 1, -length:]
        single = generate(model, alone, backend="sdpa", max_new_tokens=4, pruning=pruning)
        assert single.stored_tokens == [min(10, length)] * 3
        assert single.new_tokens[0] == result.new_tokens[row]
    with pytest.raises(ValueError, match="keep_tokens"):
        Pruning(L2(), keep_tokens=0)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("keep_ratio", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("skip_layers", [(), (0,), (1, 2)])
@pytest.mark.parametrize("question", [None, 1, 9])
def test_pruned_tokens_are_those_of_a_float64_model_with_masks(
    architecture, keep_ratio, skip_layers, question
):
    """One forward over prompt and answer, the pruned keys hidden from the tokens that follow."""
    model = tiny(architecture, dtype=torch.float32)
    prompt_len, new_tokens = 47, 8
    pruned_len = prompt_len - (question or 0)
    input_ids, _ = batch([prompt_len])
    pruning = Pruning(L2(), keep_ratio, prune_after=0, skip_layers=skip_layers)
    result = generate(
        model,
        input_ids,
        backend="sdpa",
        max_new_tokens=new_tokens,
        pruning=pruning,
        question_tokens=None if question is None else [question],
    )
    answer = result.new_tokens[0]
    expected = oracle.tokens(architecture, input_ids, answer, pruned_len, keep_ratio, skip_layers)
    assert answer == expected
    if keep_ratio == 0.1 and not skip_layers:
        assert answer != reference_tokens(model, input_ids, new_tokens=new_tokens)[0]


def test_prune_after_counts_each_rows_own_tokens():
    model = tiny()
    input_ids, mask = batch([40, 39])
    pruning = Pruning(L2(), keep_ratio=0.5, prune_after=40)
    result = generate(model, input_ids, mask, backend="sdpa", max_new_tokens=2, pruning=pruning)
    # The row of 40 keeps 20, the row of 39 all of them.
    assert result.stored_tokens == [39] * 3


@pytest.mark.parametrize("new_tokens", [1, 2, 5])
def test_timings_add_up(new_tokens):
    input_ids, _ = batch([64])
    pruning = Pruning(L2(), keep_ratio=0.5, prune_after=0)
    result = generate(tiny(), input_ids, backend="sdpa", max_new_tokens=new_tokens, pruning=pruning)
    assert result.latency_ms == result.ttft_ms + result.decode_ms
    assert result.ttft_ms == pytest.approx(result.prefill_ms + result.compress_ms)
    assert 0 < result.compress_ms < result.ttft_ms
    assert (result.decode_ms > 0) == (new_tokens > 1)
    heads, head_dim, layers, kept = 2, 16, 3, 32
    assert result.kv_bytes == 2 * layers * heads * kept * head_dim * 4
    assert result.peak_prefill_bytes is None


def test_stop_tokens_come_from_the_generation_config_else_the_tokenizer():
    model, tokenizer = tiny(), SimpleNamespace(eos_token_id=7)
    assert stop_token_ids(model, tokenizer) == {7}
    model.generation_config.eos_token_id = [3, 4]
    assert stop_token_ids(model, tokenizer) == {3, 4}
    model.generation_config.eos_token_id = 5
    assert stop_token_ids(model, tokenizer) == {5}


def test_refuses_right_padding_and_empty_prompts():
    with pytest.raises(ValueError, match="left"):
        padding_before(torch.tensor([[1, 1, 0]]))
    with pytest.raises(ValueError, match="no tokens"):
        padding_before(torch.tensor([[0, 0], [0, 1]]))


def test_a_model_of_windows_alone_is_pruned_where_the_text_fits_into_them():
    model, pruning = tiny("mistral", sliding_window=16), Pruning(L2(), 0.5, prune_after=0)
    for length, stored in ((10, [5, 5, 5]), (40, None)):
        input_ids, _ = batch([length])
        result = generate(model, input_ids, backend="sdpa", max_new_tokens=3)
        assert result.new_tokens == reference_tokens(model, input_ids, new_tokens=3)
        options = {"backend": "sdpa", "max_new_tokens": 3, "pruning": pruning}
        if stored is None:
            assert result.stored_tokens == [15, 15, 15]
            with pytest.raises(ValueError, match=r"no layer of Mistral.* attends to the whole"):
                generate(model, input_ids, **options)
        else:
            assert generate(model, input_ids, **options).stored_tokens == stored


def test_the_model_cannot_be_called_with_our_attention_outside_of_the_block():
    model = tiny()
    input_ids, _ = batch([4])
    generate(model, input_ids, backend="sdpa", max_new_tokens=1)
    model.set_attn_implementation("kv_compression")
    with pytest.raises(RuntimeError, match="use_attention"):
        model(input_ids)


def test_backend_of_a_model_follows_its_own_implementation():
    model = tiny()
    for implementation, name in {"eager": "eager", "flex_attention": "flex"}.items():
        model.set_attn_implementation(implementation)
        assert backend_of(model) == name
    model.config._attn_implementation = "sdpa"
    assert backend_of(model) == "sdpa"


def test_no_copy_of_the_cache_at_each_step():
    """Room for the new tokens is allocated once."""
    from kv_compression.layer import PrunedLayer

    layer = PrunedLayer(reserve_tokens=5)
    layer.update(torch.randn(1, 2, 10, 4), torch.randn(1, 2, 10, 4))
    layer.prune_if_due()
    before = layer.keys.data_ptr()
    for _ in range(5):
        layer.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape[2] == layer.get_seq_length() == 15


@pytest.mark.parametrize("keep_ratio", [1.0, 0.4])
def test_a_pruned_cache_works_inside_model_generate(keep_ratio):
    model = tiny()
    input_ids, mask = batch(LENGTHS)
    pruning = Pruning(L2(), keep_ratio, prune_after=6, skip_layers=(0,))
    starts = tuple(padding_before(mask))
    cache = PrunedCache(model.config.num_hidden_layers, pruning, starts)
    with attention_hook.use_attention(model, "sdpa", cache):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=10,
            do_sample=False,
        )
    ours = generate(model, input_ids, mask, backend="sdpa", max_new_tokens=10, pruning=pruning)
    assert output[:, input_ids.shape[1] :].tolist() == ours.new_tokens


def test_built_in_model_gives_the_tokens_of_generate(builtin_model, builtin_tokenizer):
    model, tokenizer = builtin_model, builtin_tokenizer
    texts = [
        "The pass key is 4711. What is the pass key? The pass key is",
        "Once",
        "A long time ago, in a village by the sea, there lived an old woman who " * 2,
        "Question: What is the capital of France?\nAnswer:",
    ]
    for prompts in (texts[:1], texts):
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        start = inputs["input_ids"].shape[1]
        whole = Pruning(L2(), keep_ratio=1.0, prune_after=0)
        for backend, pruning in itertools.product(CPU_BACKENDS, (None, whole)):
            result = generate(
                model,
                inputs["input_ids"],
                inputs["attention_mask"],
                backend=backend,
                max_new_tokens=4,
                pruning=pruning,
                stop_tokens=stop_token_ids(model, tokenizer),
            )
            for row, tokens in enumerate(result.new_tokens):
                assert expected[row, start : start + len(tokens)].tolist() == tokens


def test_log_probabilities_of_choices_are_those_of_the_whole_vocabulary():
    model = tiny()
    input_ids, attention_mask = batch([9, 30, 17])
    result = generate(
        model, input_ids, attention_mask, backend="sdpa", max_new_tokens=2, choice_tokens=[5, 3, 99]
    )
    for row, length in enumerate([9, 30, 17]):
        logits = model(input_ids[row : row + 1, -length:]).logits[0, -1]
        expected = logits.log_softmax(dim=-1)[[5, 3, 99]]
        assert result.choice_log_probs[row] == pytest.approx(
            expected.tolist(), abs=tolerance(logits, 3 * 128)
        )
    plain = generate(model, input_ids, attention_mask, backend="sdpa", max_new_tokens=2)
    assert plain.choice_log_probs == [[], [], []]
    assert plain.new_tokens == result.new_tokens
