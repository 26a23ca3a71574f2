"""Several caches from one prefill are those that a prefill for each gives."""

import pytest
import torch

from kv_compression import methods, shared_prefill
from kv_compression.budgets import budget_class
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning
from kv_compression.shared_prefill import Prompts, generate_each, reason_unsupported
from tests.families import tiny as family
from tests.models import batch, tiny

pytestmark = pytest.mark.model

LENGTHS, QUESTIONS = [67, 3, 40, 21], [5, 1, 9, 2]
CELLS = [
    None,
    *(
        Pruning(method_class(name)(), ratio, prune_after=10, skip_layers=(1,))
        for name in methods.names()
        for ratio in (0.75, 0.5, 0.1)
    ),
    *(
        Pruning(method_class(name)(), ratio, prune_after=10, budget=budget_class(budget)())
        for name, ratio, budget in (
            ("l2", 0.5, "adakv"),
            ("l2", 0.25, "whole_model"),
            ("tova", 0.5, "pyramid"),
        )
    ),
    Pruning(method_class("l2")(), keep_tokens=7, prune_after=0),
]


def both(model, lengths, prunings=CELLS, **options):
    """Each cell's own request, and the same from one prefill."""
    input_ids, mask = batch(lengths, vocab_size=model.config.vocab_size)
    options = {"backend": "sdpa"} | options
    of_prompts = {"question_tokens": options.pop("question_tokens", None), "max_new_tokens": 6}
    apart = [
        generate(model, input_ids, mask, pruning=pruning, **of_prompts, **options)
        for pruning in prunings
    ]
    prompts = [Prompts(input_ids, mask, **of_prompts)]
    shared = by_place(generate_each(model, prompts, prunings=prunings, **options))
    return [(mine, shared[number, 0]) for number, mine in enumerate(apart)]


def by_place(results):
    return {(number, place): result for number, place, result in results}


FEW = [CELLS[0], *CELLS[2::4], *CELLS[-4:]]  # of methods and shares some


@pytest.mark.parametrize("lengths", [LENGTHS[:1], LENGTHS])
@pytest.mark.parametrize("questions", [False, True])
@pytest.mark.parametrize(
    ("kind", "cells", "chunk"),
    [("llama", CELLS, None), ("llama", FEW, 32), ("qwen3", FEW, None), ("phi3", FEW, 32)],
)
def test_every_cells_tokens_and_bytes_are_its_own(kind, cells, questions, lengths, chunk):
    asked = QUESTIONS[: len(lengths)] if questions else None
    options = {"question_tokens": asked, "prefill_chunk": chunk}
    for apart, shared in both(tiny(kind), lengths, cells, **options):
        assert shared.new_tokens == apart.new_tokens
        assert shared.stored_tokens == apart.stored_tokens
        assert shared.cache_bytes == apart.cache_bytes
        assert shared.pruned_layers == apart.pruned_layers
        assert shared.kernels == apart.kernels
        assert (shared.document_ms is None) == (apart.document_ms is None)
        assert shared.prefill_is_shared
        assert not apart.prefill_is_shared


@pytest.mark.parametrize("name", ["gemma3_text", "llama4_text", "deepseek_v3", "mixtral"])
def test_layers_of_other_kinds_too(name):
    prunings = [None, *(Pruning(method_class("l2")(), ratio, 0) for ratio in (0.5, 1.0))]
    for questions in (None, QUESTIONS):
        pairs = both(family(name), LENGTHS, prunings, backend="eager", question_tokens=questions)
        for apart, shared in pairs:
            assert shared.new_tokens == apart.new_tokens
            assert shared.cache_bytes == apart.cache_bytes


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_caches_too(bits):
    for apart, shared in both(tiny(head_dim=16), LENGTHS, [*CELLS[:4], *CELLS[-4:]], kv_bits=bits):
        assert shared.new_tokens == apart.new_tokens
        assert shared.cache_bytes == apart.cache_bytes


def test_what_one_cache_cannot_do_the_others_may(monkeypatch):
    real = shared_prefill.answered

    def answered(forward, *arguments, **options):
        if forward.cache.layers[0].pruning is None:
            raise torch.OutOfMemoryError("of this cache")
        return real(forward, *arguments, **options)

    monkeypatch.setattr(shared_prefill, "answered", answered)
    prompts = [Prompts(batch([9])[0], max_new_tokens=2)]
    found = by_place(generate_each(tiny(), prompts, prunings=CELLS[:2], backend="sdpa"))
    assert isinstance(found[0, 0], torch.OutOfMemoryError)
    assert len(found[1, 0].new_tokens[0]) == 2


ASKED = [[5, 1, 9, 2], [1, 1, 1, 1], [7, 30, 2, 11]]


def about_one_context(rows, vocab_size):
    """Questions of several lengths behind the same contexts of unequal lengths."""
    contexts = [67, 3, 40, 21][:rows]
    for number, asked in enumerate(ASKED):
        generator = torch.Generator().manual_seed(number)
        lengths = [context + own for context, own in zip(contexts, asked, strict=False)]
        input_ids, mask = batch(lengths, vocab_size=vocab_size)
        for row, own in enumerate(asked[:rows]):
            start = input_ids.shape[1] - lengths[row]
            known = torch.Generator().manual_seed(100 + row)
            input_ids[row, start:-own] = torch.randint(
                3, vocab_size, (contexts[row],), generator=known
            )
            input_ids[row, -own:] = torch.randint(3, vocab_size, (own,), generator=generator)
        yield Prompts(input_ids, mask, asked[:rows], max_new_tokens=4 + number)


AGAIN = Pruning(method_class("snapkv")(), 0.5, prune_after=0, prune_every=3)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("kind", "prunings"),
    [
        ("llama", CELLS[:1]),
        ("llama", CELLS[2:3]),
        ("llama", [AGAIN]),
        ("llama", [*CELLS[:3], CELLS[-1]]),
        ("bits", CELLS[2:3]),
        ("bits", CELLS[:3]),
        ("gemma3_text", CELLS[:3]),
        ("qwen3_next", CELLS[2:3]),
    ],
)
def test_questions_about_one_context_are_answered_as_by_themselves(kind, rows, prunings):
    model = family(kind) if "_" in kind else tiny(head_dim=16)
    options = {"backend": "eager"} | ({"kv_bits": 8} if kind == "bits" else {})
    prompts = list(about_one_context(rows, model.config.vocab_size))
    found = by_place(generate_each(model, prompts, prunings=prunings, **options))
    assert len(found) == len(prunings) * len(prompts)
    for (number, place), shared in found.items():
        apart = generate(model, pruning=prunings[number], **vars(prompts[place]), **options)
        assert shared.new_tokens == apart.new_tokens
        assert shared.stored_tokens == apart.stored_tokens
        assert shared.cache_bytes == apart.cache_bytes
        assert shared.kernels == apart.kernels
        assert shared.prefill_is_shared
        assert shared.document_is_own == (len(prunings) == 1 and place == 0)


def test_contexts_that_differ_are_no_one_context():
    prompts = list(about_one_context(1, 64))
    prompts[1].input_ids[0, 0] += 1
    with pytest.raises(ValueError, match="differ in their questions alone"):
        list(generate_each(tiny(), prompts, prunings=[None], backend="sdpa"))
    assert "longrope rotation" in reason_unsupported(family("phi3: longrope"), [None], 2)


def test_what_cannot_be_shared_says_why():
    again = Pruning(method_class("l2")(), 0.5, prune_every=4)
    assert "pruned again" in reason_unsupported(tiny(), [None, again])
    assert "states" in reason_unsupported(family("qwen3_next"), [None, None])
    with pytest.raises(ValueError, match="cannot share a prefill: caches that are pruned again"):
        list(generate_each(tiny(), [], prunings=[again, None], backend="sdpa"))
