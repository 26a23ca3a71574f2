"""A float64 model without any cache: pruning is a mask over one forward of prompt and answer.

It answers only where it is sure: where rounding alone would decide, another machine is right to
differ.
"""

import math

import torch
from transformers import AttentionInterface

from kv_compression.layer_kinds import layer_kinds
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

    def seen_of(layer_idx, keys):
        if layer_idx in skip_layers:
            return visibility(keys, keys.shape[1], 1.0)
        return visibility(keys, pruned_len, keep_ratio, every)

    return answer_of(tiny(architecture), input_ids, answer, seen_of)


def family_tokens(model, input_ids, answer, pruned_len, keep_ratio):
    """The same of any model, whose layers with windows or chunks are never pruned."""
    kinds = layer_kinds(model.config)

    def seen_of(layer_idx, keys):
        kind, place = kinds[layer_idx], torch.arange(keys.shape[1])
        if hasattr(model.config, "kv_lora_rank"):  # one latent for all heads
            keys = keys.norm(dim=-1).mean(dim=0)[None, :, None].expand(len(keys), -1, 1)
        seen = visibility(keys, pruned_len, keep_ratio if kind.is_full else 1.0)
        distance = place[:, None] - place
        if kind.window is not None:
            seen &= distance < kind.window
        if kind.chunk is not None:
            seen &= place[:, None] // kind.chunk == place // kind.chunk
        return seen

    return answer_of(model, input_ids, answer, seen_of)


def answer_of(model, input_ids, answer, seen_of):
    """The answer of `model` in float64, without a cache, where seen_of(layer, keys) is a mask."""
    full = torch.cat([input_ids, torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)

    def masked_attention(
        module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **_
    ):
        seen = seen_of(module.layer_idx, key[0])
        groups = query.shape[1] // key.shape[1]
        key, value, seen = (
            key.repeat_interleave(groups, 1),
            value.repeat_interleave(groups, 1),
            seen.repeat_interleave(groups, 0),
        )
        scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, -math.inf)
        if s_aux is not None:
            scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1)
        weights = scores.softmax(-1)[..., : key.shape[2]]
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("test_masked", masked_attention)
    model = model.double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped products take no float64
    model.set_attn_implementation("test_masked")
    with torch.no_grad():
        logits = model(full, use_cache=False).logits[0, input_ids.shape[1] - 1 :]
    best, second = logits.topk(2).values.unbind(-1)
    gap = (best - second).min().item()
    if gap < _SURE * logits.abs().max().item():
        raise Undecided(f"the best two logits are {gap:.3g} apart")
    return logits.argmax(-1).tolist()
