"""Pruning again while decoding: budgets kept, tokens those of a model without a cache."""

import math

import pytest
import torch

from kv_compression import methods
from kv_compression.attended import Attended
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate
from kv_compression.layer import PrunedLayer
from kv_compression.methods import method_class
from kv_compression.methods.l2 import Method as L2
from kv_compression.pruning import Pruning
from tests import oracle
from tests.models import batch, tiny

pytestmark = pytest.mark.model


@pytest.mark.parametrize("every", [1, 2, 5, 7])
@pytest.mark.parametrize("question", [None, 1, 9])
@pytest.mark.parametrize("skip_layers", [(), (1,)])
def test_tokens_are_those_of_a_float64_model_with_masks(every, question, skip_layers):
    prompt_len, keep_ratio = 41, 0.3
    input_ids, _ = batch([prompt_len], seed=3)
    # A question is one chunk, which the oracle would prune inside of.
    every = max(every, question or 0)
    pruning = Pruning(L2(), keep_ratio, 0, skip_layers, prune_every=every)
    result = generate(
        tiny(),
        input_ids,
        backend="sdpa",
        max_new_tokens=20,
        pruning=pruning,
        question_tokens=None if question is None else [question],
    )
    answer = result.new_tokens[0]
    pruned_len = prompt_len - (question or 0)
    expected = oracle.tokens("llama", input_ids, answer, pruned_len, keep_ratio, skip_layers, every)
    assert answer == expected


@pytest.mark.parametrize("question_lengths", [None, [3, 2, 30]])
@pytest.mark.parametrize("name", methods.names())
def test_a_row_is_the_same_in_a_batch_and_alone(name, question_lengths):
    model, lengths = tiny(), [70, 8, 101]
    input_ids, mask = batch(lengths)
    pruning = Pruning(method_class(name)(), 0.4, prune_after=20, prune_every=4)

    def run(ids, attention_mask, rows):
        questions = None if question_lengths is None else [question_lengths[r] for r in rows]
        return generate(
            model,
            ids,
            attention_mask,
            backend="sdpa",
            max_new_tokens=17,
            pruning=pruning,
            question_tokens=questions,
        ).new_tokens

    together = run(input_ids, mask, range(3))
    for row, length in enumerate(lengths):
        assert run(input_ids[row : row + 1, -length:], None, [row])[0] == together[row]


def fill(layer, prompt, new_tokens, seed=0):
    """Write a prompt and then token by token; yields what is stored after each step."""
    generator = torch.Generator().manual_seed(seed)
    for length in [prompt] + [1] * new_tokens:
        keys, values, queries = torch.randn(3, 1, 2, length, 8, generator=generator)
        layer.update(keys, values)
        layer.prune_if_due(Attended(queries, 0.3))
        yield layer.stored_tokens


@pytest.mark.parametrize("name", ["l2", "random", "window", "keydiff", "snapkv", "tova"])
def test_a_layer_never_grows_beyond_its_budget(name):
    pruning = Pruning(method_class(name)(), 0.5, prune_after=0, prune_every=6)
    stored = list(fill(PrunedLayer(pruning), prompt=31, new_tokens=40))
    assert stored[:8] == [16, 17, 18, 19, 20, 21, 16, 17]
    assert max(stored) == 21
    budget = Pruning(method_class(name)(), prune_after=0, keep_tokens=12, prune_every=3)
    assert list(fill(PrunedLayer(budget), 7, 12)) == [
        7,
        8,
        9,
        10,
        11,
        12,
        12,
        13,
        14,
        12,
        13,
        14,
        12,
    ]
    whole = Pruning(method_class(name)(), 0.5, prune_after=32, prune_every=2)
    assert list(fill(PrunedLayer(whole), 31, 4))[-1] == 35


def test_positions_of_what_is_kept_are_true():
    """The window method keeps by position, so what stays is known: sinks and the last ones."""
    pruning = Pruning(method_class("window")(sinks=2), 0.25, prune_after=0, prune_every=3)
    layer = PrunedLayer(pruning, left_padding=(0, 5))
    for step in range(20):
        count = 16 if step == 0 else 1
        first = 0 if step == 0 else 15 + step
        place = torch.arange(first, first + count).float()
        keys = (place - torch.tensor([[0.0], [5.0]]))[:, None, :, None].expand(2, 1, count, 4)
        layer.update(keys.clone(), keys.clone())
        layer.prune_if_due()
    seen = 16 + 19
    for row, (start, budget) in enumerate([(0, 4), (5, 3)]):
        last = seen - start
        since = 19 % 3
        recent = range(last - since - (budget - 2), last)
        stored = layer.keys[
            row, 0, layer.left_padding[row] if layer.left_padding else 0 :, 0
        ].tolist()
        assert stored == [0, 1, *recent]


def test_what_excludes_pruning_again_says_so():
    with pytest.raises(ValueError, match="prune_every"):
        Pruning(L2(), prune_every=0)
    with pytest.raises(ValueError, match="excludes"):
        PrunedCache(2, Pruning(L2(), prune_every=4), kv_bits=8)


def test_the_count_is_of_the_prompt():
    result = generate(
        tiny(),
        batch([50])[0],
        backend="sdpa",
        max_new_tokens=30,
        pruning=Pruning(L2(), 0.31, prune_after=0, prune_every=2),
    )
    assert result.stored_tokens == [math.ceil(0.31 * 50)] * 3
