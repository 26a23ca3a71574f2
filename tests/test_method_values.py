"""Each constant, boundary and dtype of the methods and of how much they keep."""

from dataclasses import replace

import pytest
import torch

from kv_compression import methods
from kv_compression.methods import StoredLayer, method_class, prompt_queries
from kv_compression.pruning import Pruning, check_skip_layers
from tests.test_methods import layer_of

DEFAULTS = {
    "chunkkv": ({"chunk": 20, "window": 64, "kernel": 5}, 64),
    "criticalkv": ({"window": 64, "kernel": 5, "first": 0.5}, 64),
    "expected_attention": ({"future": 512, "sinks": 4}, 256),
    "h2o": ({}, 256),
    "keydiff": ({}, 0),
    "l2": ({"keep": "low"}, 0),
    "lagkv": ({"sinks": 4, "lag": 128}, 0),
    "leverage": ({"sketch": 48, "seed": 0}, 0),
    "qfilters": ({"file": ""}, 256),
    "random": ({"seed": 0}, 0),
    "snapkv": ({"window": 64, "kernel": 5}, 64),
    "tova": ({}, 1),
    "window": ({"sinks": 4}, 0),
}


@pytest.mark.parametrize("name", methods.names())
def test_defaults_and_the_queries_that_are_wanted(name):
    parameters, window = DEFAULTS[name]
    method = method_class(name)()
    assert vars(method) == parameters
    assert method.query_window == window
    everything = name in ("expected_attention", "h2o", "qfilters")
    assert prompt_queries(method, 10_000) == (10_000 if everything else window)
    assert prompt_queries(method, 1) == (1 if everything else min(window, 1))


@pytest.mark.parametrize("name", methods.names())
def test_scores_of_a_bfloat16_cache_are_computed_in_float32(name):
    layer = layer_of(40)
    small = {part: getattr(layer, part).bfloat16() for part in ("keys", "values", "queries")}
    rounded = replace(layer, **small)
    again = replace(layer, **{part: tensor.float() for part, tensor in small.items()})
    scores = method_class(name)().score(rounded)
    assert scores.dtype == torch.float32
    assert torch.allclose(scores, method_class(name)().score(again), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("chunkkv", {"chunk": 0}, {"chunk": 1}),
        ("chunkkv", {"window": 0}, {"window": 1}),
        ("chunkkv", {"kernel": 2}, {"kernel": 1}),
        ("chunkkv", {"kernel": -1}, {"kernel": 3}),
        ("criticalkv", {"window": 0}, {"window": 1}),
        ("criticalkv", {"kernel": 2}, {"kernel": 1}),
        ("criticalkv", {"first": 1.5}, {"first": 1.0}),
        ("expected_attention", {"future": 0}, {"future": 1}),
        ("expected_attention", {"sinks": -1}, {"sinks": 0}),
        ("l2", {"keep": "lowest"}, {"keep": "high"}),
        ("lagkv", {"sinks": -1}, {"sinks": 0}),
        ("lagkv", {"lag": 1}, {"lag": 2}),
        ("leverage", {"sketch": 0}, {"sketch": 1}),
        ("snapkv", {"window": 0}, {"window": 1}),
        ("snapkv", {"kernel": 4}, {"kernel": 3}),
        ("snapkv", {"kernel": 0}, {"kernel": 1}),
        ("snapkv", {"kernel": -1}, {"kernel": 1}),
        ("window", {"sinks": -1}, {"sinks": 0}),
    ],
)
def test_parameters_out_of_range(name, wrong, right):
    method_class(name)(**right)
    with pytest.raises(ValueError, match="must"):
        method_class(name)(**wrong)


def test_l2_is_the_norm_over_channels_and_its_negative():
    keys = torch.tensor([[[[3.0, 4.0], [0.0, 1.0]]]])
    layer = StoredLayer(keys, keys, torch.tensor([[[0, 1]]]))
    assert method_class("l2")().score(layer).tolist() == [[[-5, -1]]]
    assert method_class("l2")(keep="high").score(layer).tolist() == [[[5, 1]]]


def test_random_draws_place_by_place():
    drawn = torch.rand(30, 2, generator=torch.Generator().manual_seed(3 * 100_003 + 1)).T
    scores = method_class("random")(seed=3).score(layer_of(30))
    assert torch.equal(scores[0], drawn)
    pruned = replace(layer_of(3), positions=torch.tensor([[[2, 5, 29]]]))
    assert torch.equal(method_class("random")(seed=3).score(pruned)[0], drawn[:, [2, 5, 29]])


def test_window_ranks_positions_and_sinks_above_any():
    layer = replace(layer_of(4), positions=torch.tensor([[[1, 2, 3, 2**29]]]))
    scores = method_class("window")(sinks=2).score(layer)
    assert scores.tolist() == [[[2.0**30, 2, 3, 2**29]] * 2]


@pytest.mark.parametrize("name", ["tova", "snapkv"])
def test_recent_tokens_stay_beside_one_that_draws_all_attention(name):
    layer = layer_of(6, heads=1, query_heads=1)
    keys = torch.zeros_like(layer.keys)
    keys[:, :, 0] = 1e4 * layer.queries[:, :, -1]
    method = method_class(name)() if name == "tova" else method_class(name)(window=2, kernel=1)
    scores = method.score(replace(layer, keys=keys))[0, 0]
    assert 0.4 < scores[0] <= 1
    assert scores.argsort(descending=True).tolist()[:2] == ([5, 0] if name == "tova" else [5, 4])


def test_snapkv_of_fewer_tokens_than_its_window_keeps_the_most_recent():
    scores = method_class("snapkv")(window=9).score(layer_of(5))
    assert scores.tolist() == [[[2, 3, 4, 5, 6]] * 2]


def test_sinks_of_expected_attention_are_above_all():
    scores = method_class("expected_attention")(sinks=2).score(layer_of(9))[0]
    assert (scores[:, :2] == torch.finfo(torch.float32).max).all()
    assert (scores[:, 2:] < 100).all()


def test_attention_of_the_last_queries_is_causal_and_none_of_padding():
    layer = layer_of(5, rows=2, starts=(0, 4))
    weights = layer.attention_of_last(2)
    assert weights.shape == (2, 2, 2, 2, 5)
    assert (weights[0, ..., 0, 4] == 0).all()
    assert torch.allclose(weights[0].sum(dim=-1), torch.ones(2, 2, 2))
    assert (weights[1, ..., 0, :] == 0).all()  # that query is padding
    assert (weights[1, ..., 1, :4] == 0).all()
    assert (weights[1, ..., 1, 4] == 1).all()
    assert layer.last_queries()[0].shape[2] == layer.last_queries(99)[1].shape[1] == 5


BOUNDS = {
    "keep_tokens": (0, 1),
    "prune_after": (-1, 0),
    "prune_every": (0, 1),
    "skip_layers": ((-1,), (0,)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_pruning_says_which_value_is_out_of_range(name):
    wrong, right = BOUNDS[name]
    Pruning(method_class("l2")(), **{name: right})
    with pytest.raises(ValueError, match=name):
        Pruning(method_class("l2")(), **{name: wrong})


@pytest.mark.parametrize("wrong", [0, -0.1, 1.001, float("nan")])
def test_keep_ratio_is_a_share(wrong):
    Pruning(method_class("l2")(), keep_ratio=1)
    Pruning(method_class("l2")(), keep_ratio=1e-9)
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        Pruning(method_class("l2")(), keep_ratio=wrong)


def test_budgets():
    pruning = Pruning(method_class("l2")())
    assert (pruning.keep_ratio, pruning.prune_after, pruning.skip_layers) == (0.7, 512, ())
    assert pruning.keep_tokens is pruning.prune_every is None
    assert [pruning.most_tokens(prompt, prompt + 9) for prompt in (511, 512)] == [520, 359]
    in_tokens = replace(pruning, keep_tokens=10)
    assert [in_tokens.most_tokens(5, length) for length in (511, 512)] == [511, 10]


def test_layers_that_the_model_does_not_have_are_named():
    check_skip_layers([0, 3], 4)
    with pytest.raises(ValueError, match=r"no layer -1, 4: its 4 layers are 0 to 3"):
        check_skip_layers([4, 0, -1], 4)
