"""Methods against their definitions, in float64 and token by token."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import eager_attention_forward

from kv_compression.budgets import budget_class
from kv_compression.methods import h2o, method_class
from kv_compression.selection import select, select_pooled
from longctx import qfilters
from longctx.errors import SettingError
from tests.runs import run
from tests.test_methods import allowed, layer_of, rotation, row_of


def kept_best(scores, count):
    """Indices of the highest, of equal ones the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:count])


def lagkv_shares(states, sinks, lag, part):
    """Each token's share of its part's deviation, given (S, D)."""
    begin = sinks + part * lag
    following = states[begin + lag : begin + 2 * lag]
    deviations = []
    for token in states[begin : begin + lag]:
        scaled = [
            (number - column.min()) / (column.max() - column.min())
            for number, column in zip(token, following.T, strict=True)
        ]
        mean = sum(scaled) / len(scaled)
        squares = [(number - mean) ** 2 for number in scaled]
        deviations.append(math.sqrt(sum(squares) / (len(scaled) - 1)))
    total = sum(math.exp(deviation) for deviation in deviations)
    return [math.exp(deviation) / total for deviation in deviations]


@pytest.mark.parametrize(
    ("stored", "sinks", "lag"), [(45, 3, 7), (45, 0, 9), (46, 1, 15), (17, 3, 7), (16, 3, 7)]
)
def test_lagkv_by_definition(stored, sinks, lag):
    layer = layer_of(stored)
    scores = method_class("lagkv")(sinks=sinks, lag=lag).score(layer)[0]
    parts = max(0, (stored - sinks) // lag - 1)
    end = sinks + parts * lag
    assert parts == {45: 4 if sinks == 0 else 5, 46: 2, 17: 1, 16: 0}[stored]
    for head in range(2):
        for part in range(parts):
            keys, values = (
                lagkv_shares(states[0, head].double(), sinks, lag, part)
                for states in (layer.keys, layer.values)
            )
            both = [(key + value) / 2 for key, value in zip(keys, values, strict=True)]
            ranks = [sum(other < share for other in both) / lag for share in both]
            begin = sinks + part * lag
            expected = torch.tensor(ranks, dtype=torch.float32)
            assert torch.equal(scores[head, begin : begin + lag], expected)
        last = scores[head, end:]
        assert (last >= 1).all()
        assert torch.equal(last, last.sort().values)
        assert (scores[head, :sinks] > last.max()).all()


def test_lagkv_of_a_channel_without_extent():
    layer = layer_of(30)
    keys = layer.keys.clone()
    keys[:, :, 16:23, 2] = 1.5
    scores = method_class("lagkv")(sinks=2, lag=7).score(replace(layer, keys=keys))
    assert (
        scores[0, :, 9:16].sort().values.tolist()
        == [[float(torch.tensor(rank / 7)) for rank in range(7)]] * 2
    )


@pytest.mark.parametrize("starts", [(0, 13), (1, 30), (29, 2), (0, 0)])
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lagkv", {"sinks": 2, "lag": 5}),
        ("chunkkv", {"chunk": 4, "window": 6, "kernel": 3}),
        ("chunkkv", {"chunk": 13, "window": 3, "kernel": 1}),
    ],
)
def test_a_text_is_divided_from_its_own_beginning(name, parameters, starts):
    layer = layer_of(41, rows=2, starts=starts)
    method = method_class(name)(**parameters)
    scores = method.score(layer)
    for row, start in enumerate(starts):
        alone = method.score(row_of(layer, row, start))[0]
        for head in range(2):
            mine, expected = scores[row, head, start:].tolist(), alone[head].tolist()
            for count in range(1, len(mine) + 1):
                assert kept_best(mine, count) == kept_best(expected, count)


def attention_paid(layer, head, query_at):
    """(S,) float64: weights of one query head at one place over the tokens up to it."""
    group = layer.queries.shape[1] // layer.keys.shape[1]
    weights = torch.zeros(layer.keys.shape[2], dtype=torch.float64)
    seen = layer.keys[0, head // group, : query_at + 1].double()
    logits = seen @ layer.queries[0, head, query_at].double() * layer.scaling
    weights[: query_at + 1] = torch.softmax(logits, 0)
    return weights


@pytest.mark.parametrize(
    ("stored", "chunk", "window", "kernel"),
    [(47, 5, 8, 3), (45, 5, 10, 5), (30, 7, 3, 1), (12, 20, 4, 3), (12, 5, 12, 3), (9, 4, 30, 3)],
)
def test_chunkkv_by_definition(stored, chunk, window, kernel):
    layer = layer_of(stored)
    scores = method_class("chunkkv")(chunk=chunk, window=window, kernel=kernel).score(layer)[0]
    before = max(0, stored - window)
    tokens = torch.zeros(2, stored, dtype=torch.float64)
    for head in range(2):
        mean = torch.zeros(stored, dtype=torch.float64)
        for query_head in (2 * head, 2 * head + 1):
            for query_at in range(before, stored):
                mean += attention_paid(layer, query_head, query_at) / (2 * (stored - before))
        for at in range(before):
            near = range(max(0, at - kernel // 2), min(before, at + kernel // 2 + 1))
            tokens[head, at] = sum(mean[other] for other in near) / kernel
    tokens[:, before:] = tokens.max() + 1

    if stored < chunk:
        assert (scores[:, :before] - tokens[:, :before]).abs().max() < allowed(tokens, layer)
        assert scores[0].argsort().tolist()[before:] == list(range(before, stored))
        return
    highest = 0
    for begin in range(0, stored, chunk):
        mine = slice(begin, min(begin + chunk, stored))
        if begin < before:
            expected = tokens[:, mine].sum(dim=0).mean()
            assert (scores[:, mine] - expected).abs().max() < allowed(tokens, layer)
            highest = max(highest, expected)
    only_recent = scores[:, -(-before // chunk) * chunk :]
    assert (only_recent > highest).all()
    assert torch.equal(only_recent, only_recent.sort().values)


def test_a_chunk_that_does_not_fit_is_begun():
    layer = layer_of(60)
    scores = method_class("chunkkv")(chunk=6, window=6).score(layer)
    kept = kept_best(scores[0, 1].tolist(), 16)
    assert kept[-6:] == [54, 55, 56, 57, 58, 59]
    chunks = [at // 6 for at in kept[:-6]]
    (whole,) = {number for number in chunks if chunks.count(number) == 6}
    begun = [at for at in kept[:-6] if at // 6 != whole]
    assert begun == [begun[0] // 6 * 6 + step for step in range(4)]


@pytest.mark.parametrize("most_weights", [1, 30, 2 * 2 * 23 * 5, 2**23])
def test_h2o_by_definition(most_weights, monkeypatch):
    monkeypatch.setattr(h2o, "_MOST_WEIGHTS", most_weights)
    layer = layer_of(23)
    scores = method_class("h2o")().score(layer)[0]
    for head in range(2):
        paid = torch.stack(
            [
                sum(attention_paid(layer, 2 * head + other, at) for other in range(2)) / 2
                for at in range(23)
            ]
        )
        expected = torch.stack([paid[at:, at].mean() for at in range(23)])
        assert (scores[head] - expected).abs().max() < allowed(expected, layer)


def test_h2o_of_later_queries_over_a_pruned_cache():
    """Heads that kept other tokens, one of them newer than the first query."""
    whole, places = layer_of(30), torch.tensor([26, 27, 28, 29])
    positions = torch.tensor([[[1, 5, 9, 27], [0, 2, 28, 29]]])
    index = positions[..., None].expand(-1, -1, -1, 8)
    layer = replace(
        whole,
        keys=whole.keys.gather(2, index),
        values=whole.values.gather(2, index),
        positions=positions,
        queries=whole.queries[:, :, 26:],
        query_positions=places[None],
    )
    scores = method_class("h2o")().score(layer)[0]
    for head in range(2):
        paid = [[] for _ in range(4)]
        for query_head in (2 * head, 2 * head + 1):
            for at in range(26, 30):
                seen = [n for n, place in enumerate(positions[0, head].tolist()) if place <= at]
                keys = layer.keys[0, head, seen].double()
                logits = keys @ whole.queries[0, query_head, at].double() * layer.scaling
                for n, weight in zip(seen, torch.softmax(logits, 0), strict=True):
                    paid[n].append(weight)
        expected = torch.stack([sum(weights) / len(weights) for weights in paid])
        assert (scores[head] - expected).abs().max() < allowed(expected, layer)


@pytest.mark.parametrize("stored", [40, 5, 1])
def test_leverage_by_definition(stored):
    layer, method = layer_of(stored), method_class("leverage")(sketch=6, seed=3)
    scores = method.score(layer)[0]
    generator = torch.Generator().manual_seed(3 * 100_003 + layer.layer_idx)
    maps = torch.randn(2, 8, 6, generator=generator).double() / math.sqrt(6)
    for head in range(2):
        keys = torch.stack(
            [rotation(at).T @ layer.keys[0, head, at].double() for at in range(stored)]
        )
        mapped = (keys - keys.mean(dim=0)) @ maps[head]
        inverse = torch.linalg.inv(mapped.T @ mapped + 0.01 * torch.eye(6).double())
        expected = torch.stack([row @ inverse @ row for row in mapped])
        # The inverse makes an error of the keys larger where they hardly differ.
        assert torch.allclose(scores[head].double(), expected, rtol=1e-3, atol=1e-4)


def test_leverage_of_keys_that_hardly_differ():
    layer = layer_of(300)
    keys = 1e3 * layer.keys[:, :, :1] + 1e-3 * layer.keys
    scores = method_class("leverage")().score(replace(layer, keys=keys))
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    assert scores.sum() <= 2 * 8 * 1.001


def test_methods_that_undo_the_rotation_say_what_they_need():
    for name in ("expected_attention", "leverage"):
        with pytest.raises(ValueError, match=f"{name} needs the rotation"):
            method_class(name)().score(replace(layer_of(5), rotary=None))


@pytest.mark.parametrize("budget", ["uniform", "adakv"])
def test_criticalkv_by_definition(budget):
    stored, count, heads = 40, 11, 2
    layer = replace(layer_of(stored), counts=(count,), budget=budget_class(budget)())
    method = method_class("criticalkv")(window=4, kernel=3)
    attention = method_class("snapkv")(window=4, kernel=3).score(layer)[0].double()
    weights = layer.output_weight.T.double().unflatten(0, (heads, 2, -1))
    norms = [
        sum((layer.values[0, head].double() @ weight).abs().sum(-1) for weight in weights[head]) / 2
        for head in range(heads)
    ]
    own = [count] * heads
    if budget == "adakv":
        sure = {(head, at) for head in range(heads) for at in kept_best(attention[head], 2)}
        others = {(head, at) for head in range(heads) for at in range(stored)} - sure
        others = sorted(others, key=lambda pair: -attention[pair].item())
        kept = [*sure, *others[: heads * count - len(sure)]]
        own = [sum(head == mine for mine, _ in kept) for head in range(heads)]
        assert own[0] != own[1]
    scores = method.score(layer)
    if budget == "adakv":
        index = select_pooled(scores, None, [heads * count], [2]).index[0]
        chosen = [(index[index // stored == head] % stored).tolist() for head in range(heads)]
    else:
        chosen = select(scores, None, [count]).index[0].tolist()
    for head in range(heads):
        first = kept_best(attention[head], own[head] // 2)
        second = (attention[head] + 1e-4) * norms[head]
        rest = sorted(set(range(stored)) - set(first), key=lambda at: -second[at].item())
        assert chosen[head] == sorted([*first, *rest[: own[head] - len(first)]])


def test_qfilters_by_definition(tmp_path):
    stored = 30
    layer = layer_of(stored)
    scores = method_class("qfilters")().score(layer)[0]
    filters = []
    for head in range(2):
        of_group = []
        for query_head in (2 * head, 2 * head + 1):
            queries = layer.queries[0, query_head].double()
            main = torch.linalg.svd(queries).Vh[0]
            of_group.append(main if (queries @ main).mean() > 0 else -main)
        filters.append(torch.stack(of_group).mean(0))
        expected = layer.keys[0, head].double() @ filters[-1]
        assert (scores[head] - expected).abs().max() < allowed(expected, layer)
    file = tmp_path / "filters.safetensors"
    save_file({"1": torch.stack(filters).float()}, file)
    from_file = method_class("qfilters")(file=str(file))
    assert not from_file.all_prompt_queries
    assert (from_file.score(layer)[0] - scores).abs().max() < allowed(scores, layer)
    with pytest.raises(ValueError, match="is not of this model"):
        from_file.score(replace(layer, layer_idx=2))
    with pytest.raises(ValueError, match="cannot be read"):
        method_class("qfilters")(file=str(tmp_path / "none"))


@pytest.mark.model
def test_filters_of_a_text_are_those_of_all_its_queries(tiny_folder, tmp_path, monkeypatch, capsys):
    """The command, then a run with its file: filters are of the model's own queries."""
    text, out = tmp_path / "text.txt", tmp_path / "filters.safetensors"
    text.write_text(" ".join(f"word{number}" for number in range(300)))
    for name, value in {"MODEL_ID": str(tiny_folder), "DTYPE": "float32"}.items():
        monkeypatch.setenv(name, value)
    command = [
        "qfilters",
        "--text",
        str(text),
        "--out",
        str(out),
        "--tokens",
        "100",
        "--pieces",
        "3",
    ]
    monkeypatch.setattr(sys, "argv", command)
    qfilters.main()
    assert "filters from 300 tokens of text.txt" in capsys.readouterr().out
    found = load_file(out)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(tiny_folder)(text.read_text())["input_ids"][:300]
    queries = []

    def noted(module, query, key, value, mask, **options):
        if module.layer_idx == 0:
            queries.append(query[0].double())
        return eager_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("noted", noted)
    model.set_attn_implementation("noted")
    mask = torch.full((100, 100), -torch.inf).triu(1)[None, None]
    for piece in torch.tensor(ids).view(3, 100):
        model(piece[None], attention_mask=mask)
    mains = []
    for head in torch.cat(queries, dim=1):
        main = torch.linalg.svd(head).Vh[0]
        mains.append(main if (head @ main).mean() > 0 else -main)
    expected = torch.stack(mains).unflatten(0, (found["0"].shape[0], -1)).mean(dim=1)
    assert (found["0"] - expected).abs().max() < 1e-3  # directions of float32 queries
    settings = {"KV_MODE": "qfilters", "QFILTERS_FILE": str(out), "KEEP_RATIO": "0.5"}
    full = run(tiny_folder, tmp_path / "logs", PRUNE_AFTER="0", N_SAMPLES="2", **settings)
    assert full["summary"]["n_failed"] == 0
    with pytest.raises(SettingError, match="cannot be read"):
        run(tiny_folder, tmp_path / "none", **settings | {"QFILTERS_FILE": "none.safetensors"})
