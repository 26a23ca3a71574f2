"""Budgets that heads and layers share unequally: what is kept, where it lies, what is answered."""

import contextlib
import copy
import math

import pytest
import torch

from kv_compression.budgets import budget_class, names
from kv_compression.budgets.pyramid import Budget as Pyramid
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate
from kv_compression.methods import method_class
from kv_compression.pruning import Pruning, kept_count
from kv_compression.ragged import RaggedStorage
from kv_compression.selection import select_pooled
from tests.families import tiny as family
from tests.models import batch, tiny
from tests.oracle import _SURE, Undecided, answer_of

pytestmark = pytest.mark.model

LENGTHS = [67, 3, 41, 22]
STEEP = Pyramid(slope=4, least=0)


def pruning(budget, method="l2", keep_ratio=0.4, **options):
    return Pruning(method_class(method)(), keep_ratio, 0, budget=budget_class(budget)(), **options)


def best(scores, count, among=None):
    """The places of the `count` highest of a flat list of scores. Raises Undecided."""
    ranked = sorted(among or range(len(scores)), key=lambda place: -scores[place])
    if 0 < count < len(ranked):
        last, next_one = scores[ranked[count - 1]], scores[ranked[count]]
        if last - next_one < _SURE * abs(next_one):
            raise Undecided(f"scores of {last:.9g} and {next_one:.9g}")
    return set(ranked[:count])


def kept_by_definition(norms, budget, count):
    """For each layer and head the places kept of a prompt, given norms (L, H, S): lowest stay."""
    layers, heads, tokens = norms.shape
    scores = (-norms).tolist()
    kept = [[set() for _ in range(heads)] for _ in range(layers)]
    if budget == "pyramid":
        for layer in range(layers):
            mine = STEEP.of_layer(count, tokens, layer, layers)
            for head in range(heads):
                kept[layer][head] = best(scores[layer][head], mine)
        return kept
    sure = int(count * 0.2)
    for layer in range(layers):
        for head in range(heads):
            kept[layer][head] = best(scores[layer][head], sure)
    pools = [[layer] for layer in range(layers)] if budget == "adakv" else [range(layers)]
    for pool in pools:
        places = [(layer, head) for layer in pool for head in range(heads)]
        flat = [score for layer, head in places for score in scores[layer][head]]
        rest = [
            number * tokens + place
            for number, (layer, head) in enumerate(places)
            for place in range(tokens)
            if place not in kept[layer][head]
        ]
        for place in best(flat, (count - sure) * len(places), rest):
            layer, head = places[place // tokens]
            kept[layer][head].add(place % tokens)
    return kept


def expected_tokens(model, input_ids, answer, pruned_len, chosen):
    """What a float64 model without a cache answers. Raises Undecided."""
    of_layers = {}

    def all_of(layer_idx, keys):
        of_layers[layer_idx] = keys[:, :pruned_len].norm(dim=-1)
        return torch.ones(len(keys), *[keys.shape[1]] * 2, dtype=torch.bool).tril()

    answer_of(model, input_ids, answer, all_of)
    pruned = [layer_idx for layer_idx in of_layers if layer_idx not in chosen.skip_layers]
    norms = torch.stack([of_layers[layer_idx] for layer_idx in pruned])
    count = math.ceil(chosen.keep_ratio * pruned_len)
    kept = kept_by_definition(norms, type(chosen.budget).__module__.rpartition(".")[2], count)

    def seen_of(layer_idx, keys):
        seen = torch.ones(len(keys), *[keys.shape[1]] * 2, dtype=torch.bool).tril()
        if layer_idx in pruned:
            for head, places in enumerate(kept[pruned.index(layer_idx)]):
                dropped = sorted(set(range(pruned_len)) - places)
                seen[head, pruned_len:, dropped] = False
        return seen

    return answer_of(model, input_ids, answer, seen_of)


@pytest.mark.parametrize("budget", ["adakv", "pyramid", "whole_model"])
@pytest.mark.parametrize("question", [None, 1, 7])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "skip_layers", "chunk"),
    [(4, 2, (), None), (6, 3, (1,), 16), (4, 1, (), None), (4, 4, (0,), 16)],
)
def test_tokens_are_those_of_a_float64_model(budget, question, heads, kv_heads, skip_layers, chunk):
    shared = STEEP if budget == "pyramid" else budget_class(budget)()
    chosen = Pruning(method_class("l2")(), 0.4, 0, skip_layers, budget=shared)
    questions = question and [min(question, length - 1) for length in LENGTHS]
    for seed in range(9):
        # So many norms are compared that two of them often lie too close together.
        with contextlib.suppress(Undecided):
            check_tokens(tiny("llama", heads, kv_heads, layers=4), seed, chosen, questions, chunk)
            return
    raise AssertionError("no prompts decide")


def check_tokens(model, seed, chosen, questions, chunk):
    input_ids, mask = batch(LENGTHS, seed)
    result = generate(
        model,
        input_ids,
        mask,
        backend="sdpa",
        max_new_tokens=6,
        pruning=chosen,
        question_tokens=questions,
        prefill_chunk=chunk,
    )
    for row, length in enumerate(LENGTHS):
        pruned_len = length - (questions[row] if questions else 0)
        mine, answer = input_ids[row, None, -length:], result.new_tokens[row]
        assert answer == expected_tokens(copy.deepcopy(model), mine, answer, pruned_len, chosen)


@pytest.mark.parametrize("budget", names())
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_everything_kept_is_the_full_cache(budget, backend):
    model = tiny("qwen3")
    input_ids, mask = batch([9, 31, 17])
    for questions in (None, [3, 1, 9]):
        options = {"backend": backend, "max_new_tokens": 6, "question_tokens": questions}
        full = generate(model, input_ids, mask, **options)
        kept = generate(model, input_ids, mask, pruning=pruning(budget, keep_ratio=1.0), **options)
        assert kept.new_tokens == full.new_tokens


@pytest.mark.parametrize("budget", names())
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("questions", [None, [3, 1, 9]])
def test_a_row_is_the_same_in_a_batch_and_alone(budget, bits, questions):
    model, lengths = tiny(head_dim=32), [70, 8, 101]
    input_ids, mask = batch(lengths)
    options = {"backend": "sdpa", "max_new_tokens": 9, "kv_bits": bits}
    for every in (None, 3) if bits is None and budget != "whole_model" else (None,):
        chosen = pruning(budget, "snapkv", prune_every=every)
        together = generate(
            model, input_ids, mask, pruning=chosen, question_tokens=questions, **options
        )
        for row, length in enumerate(lengths):
            alone = generate(
                model,
                input_ids[row, None, -length:],
                pruning=chosen,
                question_tokens=questions and [questions[row]],
                **options,
            )
            assert together.new_tokens[row] == alone.new_tokens[0]


@pytest.mark.parametrize("budget", ["adakv", "pyramid", "whole_model"])
def test_the_total_is_met_exactly_and_nothing_more_is_stored(budget):
    model, length = tiny(layers=5), 203
    for keep_ratio in (0.1, 0.25, 0.5, 0.75):
        shared = STEEP if budget == "pyramid" else budget_class(budget)()
        chosen = Pruning(method_class("l2")(), keep_ratio, 0, budget=shared)
        options = {"backend": "eager", "max_new_tokens": 1}
        result = generate(model, batch([length])[0], pruning=chosen, **options)
        count = kept_count(length, keep_ratio)
        a_token = 2 * 16 * 4  # keys and values of 16 channels in float32
        assert result.cache_bytes.full == 5 * 2 * count * a_token
        assert len(set(result.stored_tokens)) > 1 or budget == "adakv"


def test_heads_really_differ_and_each_keeps_its_guarantee():
    scores = torch.randn(3, 4, 90, generator=torch.Generator().manual_seed(1))
    scores *= torch.tensor([0.1, 1.0, 3.0, 0.5])[:, None]
    padding = torch.tensor([[0], [40], [7]])
    kept = select_pooled(scores, padding, [80, 120, 40], [4, 6, 2])
    for row, total in enumerate(kept.totals):
        index = kept.index[row, kept.index.shape[1] - total :]
        assert index.tolist() == sorted(set(index.tolist()))
        assert (index % 90 >= padding[row]).all()
        counts = torch.bincount(index // 90, minlength=4)
        assert counts.sum() == total
        assert counts.min() >= [4, 6, 2][row]
        assert counts.max() > counts.min()


@pytest.mark.parametrize("room", [0, 2, 9])
def test_storage_holds_what_was_given_to_it(room):
    """Appending beyond the room, with padding, against plain lists."""
    generator = torch.Generator().manual_seed(room)
    keys, values = torch.randn(2, 2, 3, 20, 4, generator=generator)
    values = values[..., :2].contiguous()
    scores = torch.randn(2, 3, 20, generator=generator)
    kept = select_pooled(scores, None, [31, 12], [1, 1])
    positions = torch.arange(20).expand(2, 1, 20)
    storage = RaggedStorage(keys, values, kept, room, positions)
    expected = {}
    for row, total in enumerate(kept.totals):
        for place in kept.index[row, kept.index.shape[1] - total :].tolist():
            expected.setdefault((row, place // 20), []).append((row, place // 20, place % 20))
    lines = {
        pair: [(keys[place], values[place], place[2]) for place in places]
        for pair, places in expected.items()
    }
    seen = 20
    for padding in (None, (0, 2), (3, 0)):
        new_keys, new_values = torch.randn(2, 2, 3, 3, 4, generator=generator)
        new_values = new_values[..., :2]
        first = torch.tensor([seen - none for none in padding or (0, 0)])[:, None]
        storage.append(new_keys, new_values, padding, first + torch.arange(3))
        for row in range(2):
            for head in range(3):
                for token in range((padding or (0, 0))[row], 3):
                    lines[row, head].append(
                        (
                            new_keys[row, head, token],
                            new_values[row, head, token],
                            int(first[row, 0]) + token,
                        )
                    )
        seen += 3
        padded = storage.padded()
        for (row, head), line in lines.items():
            read = storage.read(row, head)
            assert torch.equal(read[0][0, 0], torch.stack([key for key, _, _ in line]))
            assert torch.equal(read[1][0, 0], torch.stack([value for _, value, _ in line]))
            assert torch.equal(padded[0][row, head, -len(line) :], read[0][0, 0])
            assert padded[2][row, head, -len(line) :].tolist() == [place for *_, place in line]
            assert (padded[2][row, head, : -len(line)] == -1).all()
        assert storage.row_counts == [
            sum(len(lines[row, head]) for head in range(3)) for row in range(2)
        ]
        assert storage.nbytes == sum(storage.row_counts) * 6 * 4


def test_prune_every_keeps_the_budget_of_heads_that_differ():
    chosen = pruning("adakv", keep_ratio=0.3, prune_every=4)
    input_ids, mask = batch([60, 33])
    seen = []
    real = RaggedStorage.append

    def append(self, *arguments):
        real(self, *arguments)
        seen.append(self.row_counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RaggedStorage, "append", append)
        generate(tiny(), input_ids, mask, backend="eager", max_new_tokens=20, pruning=chosen)
    most = [2 * (math.ceil(0.3 * length) + 4) for length in (60, 33)]
    assert all(count <= limit for counts in seen for count, limit in zip(counts, most, strict=True))
    assert any(counts[0] == most[0] for counts in seen)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="prune_every excludes"):
        PrunedCache(3, pruning("whole_model", prune_every=3))
    with pytest.raises(ValueError, match="one latent for all"):
        generate(
            family("deepseek_v3"),
            batch([9], vocab_size=256)[0],
            backend="eager",
            max_new_tokens=2,
            pruning=pruning("adakv"),
        )
    with pytest.raises(ValueError, match=r"ADAKV_GUARANTEE must lie in \[0, 1\]"):
        budget_class("adakv")(guarantee=1.5)


@pytest.mark.parametrize("count", [64, 65, 100, 127, 300])
@pytest.mark.parametrize("layers", [1, 2, 7, 28])
def test_a_pyramid_falls_and_adds_up(count, layers):
    shares = [Pyramid().of_layer(count, 500, place, layers) for place in range(layers)]
    assert sum(shares) == count * layers
    assert shares == sorted(shares, reverse=True)
    assert max(shares) <= 500
