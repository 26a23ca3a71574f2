"""Every method: what it keeps, by definition and in a batch as alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_compression import methods
from kv_compression.budgets.uniform import Budget as Uniform
from kv_compression.generation import generate
from kv_compression.methods import StoredLayer, expected_attention, method_class
from kv_compression.pruning import Pruning
from kv_compression.rotary import rotations
from tests.models import batch, tiny
from tests.reference import tolerance

SCALING = 0.25
ROTARY = next(iter(rotations(tiny(head_dim=8)).values()))


def layer_of(stored, rows=1, starts=None, heads=2, query_heads=4, head_dim=8, seed=0, layer_idx=1):
    generator = torch.Generator().manual_seed(seed)

    def random(n_heads):
        return torch.randn(rows, n_heads, stored, head_dim, generator=generator)

    keys, values, queries = random(heads), random(heads), random(query_heads)
    first = torch.tensor(starts or (0,) * rows)[:, None]
    positions = (torch.arange(stored) - first).clamp(min=-1)
    known = queries, positions, SCALING, layer_idx, ROTARY
    weight = torch.randn(12, query_heads * head_dim, generator=generator)
    counts = tuple(-(-(stored - int(row)) // 2) for row in first)
    return StoredLayer(keys, values, positions[:, None], *known, weight, counts, Uniform())


def row_of(layer, row, start):
    """A row of a padded layer, alone."""
    return StoredLayer(
        layer.keys[row, None, :, start:],
        layer.values[row, None, :, start:],
        layer.positions[row, None, :, start:],
        layer.queries[row, None, :, start:],
        layer.query_positions[row, None, start:],
        layer.scaling,
        layer.layer_idx,
        layer.rotary,
        layer.output_weight,
        (layer.counts[row],),
        layer.budget,
    )


def allowed(scores, layer):
    """What rounding may make of scores: sums over all tokens of sums over a head's channels."""
    return tolerance(scores, layer.keys.shape[2] * layer.keys.shape[3])


@pytest.mark.parametrize("name", methods.names())
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_scores_of_a_row_do_not_depend_on_its_batch(name, data):
    stored = data.draw(st.integers(1, 200))
    starts = tuple(data.draw(st.integers(0, stored - 1)) for _ in range(2))
    layer = layer_of(stored, rows=2, starts=starts if any(starts) else None)
    scores = method_class(name)().score(layer)
    assert scores.shape == layer.keys.shape[:3]
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    for row, start in enumerate(starts):
        alone = method_class(name)().score(row_of(layer, row, start))
        assert (scores[row, :, start:] - alone[0]).abs().max() <= allowed(alone[0], layer)


def attention(layer, head, query_at):
    """float64 weights of one query head over the tokens up to its own."""
    key = layer.keys[0, head // 2, : query_at + 1].double()
    scores = key @ layer.queries[0, head, query_at].double() * layer.scaling
    return torch.softmax(scores, 0)


def test_window_keeps_sinks_and_the_end():
    scores = method_class("window")(sinks=2).score(layer_of(9))
    assert scores[0, 0].topk(5).indices.sort().values.tolist() == [0, 1, 6, 7, 8]


def test_random_is_a_draw_of_its_own_in_every_layer_and_head():
    draws = [
        method_class("random")(seed=s).score(layer_of(50, layer_idx=n))
        for s in (0, 1)
        for n in (0, 1)
    ]
    flat = [draw[0, head] for draw in draws for head in range(2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(flat) for b in flat[:i])
    assert 0.3 < torch.stack(flat).mean() < 0.7


def test_keydiff_by_definition():
    layer = layer_of(20)
    scores = method_class("keydiff")().score(layer)
    keys = layer.keys[0, 1].double()
    unit = keys / keys.norm(dim=-1, keepdim=True)
    mean = unit.mean(0)
    expected = -(unit @ mean) / mean.norm()
    assert (scores[0, 1] - expected).abs().max() < allowed(expected, layer)


def test_tova_by_definition():
    layer = layer_of(20)
    scores = method_class("tova")().score(layer)
    expected = sum(attention(layer, head, 19) for head in range(4)) / 4
    assert (scores[0, 0, :-1] - expected[:-1]).abs().max() < allowed(expected, layer)
    assert torch.equal(scores[0, 0], scores[0, 1])
    assert scores[0, 0].argmax() == 19


def test_snapkv_by_definition():
    layer, window, kernel = layer_of(30), 4, 3
    scores = method_class("snapkv")(window=window, kernel=kernel).score(layer)
    for head in range(2):
        mean = torch.zeros(30, dtype=torch.float64)
        for query_head in (2 * head, 2 * head + 1):
            for query_at in range(26, 30):
                mean[: query_at + 1] += attention(layer, query_head, query_at) / 8
        before = torch.cat([torch.zeros(1), mean[:26], torch.zeros(1)]).double()
        expected = torch.stack([before[i : i + 3].sum() / 3 for i in range(26)])
        assert (scores[0, head, :26] - expected).abs().max() < allowed(expected, layer)
        assert scores[0, head].topk(4).indices.sort().values.tolist() == [26, 27, 28, 29]


def rotation(position, head_dim=8, theta=10_000):
    """(D, D) float64: the rotary embedding as a matrix, channels paired by halves."""
    matrix = torch.zeros(head_dim, head_dim, dtype=torch.float64)
    for pair in range(head_dim // 2):
        angle = torch.tensor(position * theta ** (-2 * pair / head_dim), dtype=torch.float64)
        other = pair + head_dim // 2
        matrix[pair, pair] = matrix[other, other] = angle.cos()
        matrix[pair, other], matrix[other, pair] = -angle.sin(), angle.sin()
    return matrix


@pytest.mark.parametrize("terms", [1024, 30, 10, 7])
def test_expected_attention_by_definition(terms, monkeypatch):
    monkeypatch.setattr(expected_attention, "_TERMS", terms)  # parts of the covariances' sums
    stored, sinks, future = 30, 3, 7
    layer = layer_of(stored)
    scores = method_class("expected_attention")(future=future, sinks=sinks).score(layer)
    mean_rotation = sum(rotation(stored + step) for step in range(future)) / future
    for head in range(2):
        keys, values = layer.keys[0, head].double(), layer.values[0, head].double()
        attention_weights = []
        for query_head in (2 * head, 2 * head + 1):
            unrotated = torch.stack(
                [
                    rotation(place).T @ layer.queries[0, query_head, place].double()
                    for place in range(sinks, stored)
                ]
            )
            mean = mean_rotation @ unrotated.mean(0)
            covariance = mean_rotation @ torch.cov(unrotated.T, correction=0) @ mean_rotation.T
            logits = keys @ mean * SCALING
            logits += torch.einsum("si,ij,sj->s", keys, covariance, keys) * SCALING**2 / 2
            attention_weights.append(logits[sinks:].softmax(0))
        expected = torch.stack(attention_weights).mean(0) * values[sinks:].norm(dim=-1)
        assert (scores[0, head, sinks:] - expected).abs().max() < allowed(expected, layer)
        assert (scores[0, head, :sinks] > scores[0, head, sinks:].max()).all()


def test_methods_that_score_by_attention_say_what_they_need():
    layer = layer_of(5)
    without = StoredLayer(layer.keys, layer.values, layer.positions)
    for name in ("snapkv", "tova", "expected_attention", "chunkkv", "h2o"):
        with pytest.raises(ValueError, match="needs the queries"):
            method_class(name)().score(without)


@pytest.mark.parametrize("questions", [None, [3, 2, 40]])
@pytest.mark.parametrize("name", methods.names())
def test_every_method_in_generation(name, questions):
    model = tiny()
    lengths = [90, 8, 131]
    input_ids, mask = batch(lengths)

    def run(ids, attention_mask, rows, **pruning):
        return generate(
            model,
            ids,
            attention_mask,
            backend="sdpa",
            max_new_tokens=6,
            pruning=Pruning(method_class(name)(), prune_after=0, **pruning),
            question_tokens=None if questions is None else [questions[row] for row in rows],
        )

    whole = run(input_ids, mask, range(3), keep_ratio=1.0)
    expected = model.generate(
        input_ids=input_ids, attention_mask=mask, max_new_tokens=6, do_sample=False
    )
    assert whole.new_tokens == expected[:, 131:].tolist()

    pruned = run(input_ids, mask, range(3), keep_ratio=0.3)
    longest = max(n - (questions[row] if questions else 0) for row, n in enumerate(lengths))
    rest = max(questions) if questions else 0
    assert pruned.stored_tokens == [math.ceil(0.3 * longest) + rest] * 3
    for row, length in enumerate(lengths):
        alone = run(input_ids[row : row + 1, -length:], None, [row], keep_ratio=0.3)
        assert alone.new_tokens[0] == pruned.new_tokens[row]
