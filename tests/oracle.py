"""A float64 model without any cache: pruning is a mask over one forward of prompt and answer.

It answers only where it is sure: where rounding alone would decide, another machine is right to
differ.
"""

import math

import torch
from transformers import AttentionInterface

from tests.models import tiny

# A hundred roundings of float32 in a few sums one after the other.
_SURE = 100 * torch.finfo(torch.float32).eps


class Undecided(Exception):
    """Rounding alone decides here: the test needs another prompt."""


def kept_by_norm(norms, candidates, count):
    """The `count` of `candidates` with the lowest norms. Raises Undecided."""
    ranked = sorted(candidates, key=lambda place: norms[place])
    if count < len(ranked):
        last, first_dropped = norms[ranked[count - 1]], norms[ranked[count]]
        if first_dropped - last < _SURE * first_dropped:
            raise Undecided(f"keys' norms of {last:.9g} and {first_dropped:.9g}")
    return set(ranked[:count])


def visibility(keys, prompt_len, keep_ratio, prune_every=None):
    """(H, S, S) bool: what a cache pruned after `prompt_len` tokens lets each query see."""
    heads, total, _ = keys.shape
    budget = math.ceil(keep_ratio * prompt_len)
    seen = torch.tril(torch.ones(total, total, dtype=torch.bool)).repeat(heads, 1, 1)
    for head in range(heads):
        norms = keys[head].norm(dim=-1).tolist()
        stored = kept_by_norm(norms, range(prompt_len), budget)
        added = 0
        for query in range(prompt_len, total):
            stored.add(query)
            seen[head, query, list(set(range(query)) - stored)] = False
            added += 1
            if prune_every is not None and added >= prune_every:
                stored, added = kept_by_norm(norms, stored, budget), 0
    return seen


def tokens(architecture, input_ids, answer, pruned_len, keep_ratio, skip_layers=(), every=None):
    """The answer of tests.models.tiny in float64, given that its own first tokens are `answer`.

    Raises Undecided.
    """
    full = torch.cat([input_ids, torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)

    def masked_attention(module, query, key, value, attention_mask, scaling, **_):
        if module.layer_idx in skip_layers:
            seen = visibility(key[0], key.shape[2], 1.0)
        else:
            seen = visibility(key[0], pruned_len, keep_ratio, every)
        groups = query.shape[1] // key.shape[1]
        key, value, seen = (
            key.repeat_interleave(groups, 1),
            value.repeat_interleave(groups, 1),
            seen.repeat_interleave(groups, 0),
        )
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -math.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("test_masked", masked_attention)
    model = tiny(architecture).double()
    model.set_attn_implementation("test_masked")
    with torch.no_grad():
        logits = model(full, use_cache=False).logits[0, input_ids.shape[1] - 1 :]
    best, second = logits.topk(2).values.unbind(-1)
    gap = (best - second).min().item()
    if gap < _SURE * logits.abs().max().item():
        raise Undecided(f"the best two logits are {gap:.3g} apart")
    return logits.argmax(-1).tolist()
