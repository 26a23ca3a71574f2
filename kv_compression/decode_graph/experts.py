"""Mixtures of experts for a few tokens: of the chosen experts' weights each is read once a token.

Transformers' own ways are made for many tokens, or for the host: grouped products start as slowly
for one token as for hundreds, and gathered weights are copied first.
"""

from typing import Any

import torch
import triton

from kv_compression.decode_graph.experts_kernel import project_chosen


def are_experts(module: torch.nn.Module) -> bool:
    """Whether `forward` can stand for the module: transformers says how such weights are stored."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))


def forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the module's own forward gives, up to rounding: hidden_states, (T, hidden size).

    top_k_index, top_k_weights: (T, experts chosen for each token).
    """
    tokens, chosen = top_k_index.shape
    experts = top_k_index.reshape(-1)
    wide = _products(
        module, "gate_up_proj" if module.has_gate else "up_proj", hidden_states, experts
    )
    wide = module._apply_gate(wide) if module.has_gate else module.act_fn(wide)
    narrow = _products(module, "down_proj", wide, experts)
    weighted = narrow * top_k_weights.reshape(-1, 1)
    return weighted.view(tokens, chosen, -1).sum(dim=1).to(hidden_states.dtype)


def _products(module: Any, name: str, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """x (T or pairs, K) times the weights of each pair's expert, (pairs, N)."""
    weights = getattr(module, name)
    bias = getattr(module, f"{name}_bias") if module.has_bias else weights
    stride_expert, stride_n, stride_k = weights.stride()
    out_features, in_features = weights.shape[1:]
    if module.is_transposed:
        stride_n, stride_k = stride_k, stride_n
        out_features, in_features = in_features, out_features
    # Neighbouring threads read neighbouring weights.
    tile = (32, 128) if stride_n == 1 else (8, 512)
    rows, columns = (
        min(most, triton.next_power_of_2(size))
        for most, size in zip(tile, (out_features, in_features), strict=True)
    )
    pairs = len(experts)
    out = x.new_empty(pairs, out_features)
    project_chosen[(triton.cdiv(out_features, rows), pairs)](
        x.contiguous(), weights, bias, experts, out, out_features, in_features, pairs // len(x),
        stride_expert, stride_n, stride_k, BIAS=module.has_bias, BN=rows, BK=columns, num_warps=4,
    )  # fmt: skip
    return out
