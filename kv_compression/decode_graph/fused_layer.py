"""A decoder layer of the Llama family for one new token a row, in six kernels.

Norm and projections to query, key and value; attention (two kernels); output projection and
residual; norm, gate and up; down and residual. The same function as the model's own layer up to
rounding: sums are taken in float32 and rounded where the model rounds its products. LLM.int8()'s
weights alone are taken otherwise: by the activations as they are, not rounded to 8 bits.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.activations import ACT2FN

from kv_compression.decode_graph.attention import HeadTransform, attend
from kv_compression.decode_graph.linear import MOST_ROWS, MOST_ROWS_OF_4BIT, linear
from kv_compression.decode_graph.table import LayerTable
from kv_compression.decode_graph.weights import Weight, is_plain

# Layers known to be: x += attention(norm(x)); x += mlp(norm(x)).
_KNOWN = frozenset(
    f"transformers.models.{family}.modeling_{family}.{name}DecoderLayer"
    for family, name in {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "qwen3_moe": "Qwen3Moe",
        "mixtral": "Mixtral",
    }.items()
)


@dataclass(frozen=True)
class FusedLayer:
    """One layer's weights and its place in the cache; called as the model's own layer is.

    gate_up, down: empty where the MLP is a mixture of experts, which runs as it is.
    """

    layer: Any
    index: int
    table: LayerTable
    qkv: tuple[Weight, ...]
    out: tuple[Weight, ...]
    gate_up: tuple[Weight, ...] = ()
    down: tuple[Weight, ...] = ()

    @classmethod
    def of(cls, layer: Any, table: LayerTable, batch: int) -> "FusedLayer | None":
        """The layer fused; None where it is of another kind or holds weights of another kind."""
        groups = _weights(layer, batch)
        return None if groups is None else cls(layer, layer.self_attn.layer_idx, table, *groups)

    @staticmethod
    def fits(layer: Any, batch: int) -> bool:
        """Whether `of` would fuse the layer for batches of `batch` rows."""
        return _weights(layer, batch) is not None

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **__: Any,
    ) -> torch.Tensor:
        """hidden_states (B, 1, hidden size), as the model's own layer."""
        layer, attention = self.layer, self.layer.self_attn
        x = hidden_states[:, 0]
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        qkv = linear(x, self.qkv, norm=before.weight, eps=before.variance_epsilon)
        q, k, v = qkv.split([weight.out_features for weight in self.qkv], dim=1)
        # A batch of one length has one row of angles for all.
        cos, sin = (angles[:, 0].expand(len(x), -1) for angles in position_embeddings)
        transform = HeadTransform(cos.contiguous(), sin.contiguous())
        if hasattr(attention, "q_norm"):
            gains = attention.q_norm.weight, attention.k_norm.weight
            transform = replace(
                transform, q_gain=gains[0], k_gain=gains[1], eps=attention.q_norm.variance_epsilon
            )
        attended = attend(
            q,
            k,
            v,
            self.table,
            self.index,
            head_dim=attention.head_dim,
            scaling=attention.scaling,
            transform=transform,
        )
        x = linear(attended, self.out, residual=x)
        if not self.gate_up:
            return x[:, None] + layer.mlp(after(x)[:, None])
        wide = linear(x, self.gate_up, norm=after.weight, eps=after.variance_epsilon, gated=True)
        return linear(wide, self.down, residual=x)[:, None]


def _weights(layer: Any, batch: int) -> list[tuple[Weight, ...]] | None:
    """The weights of the layer's products; None where the kernels cannot take them."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__name__}" not in _KNOWN:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    if not all(map(is_plain, (layer, attention, mlp, *norms))):
        return None
    products = [(attention.q_proj, attention.k_proj, attention.v_proj), (attention.o_proj,)]
    if not hasattr(mlp, "experts"):
        if type(mlp.act_fn) is not type(ACT2FN["silu"]):
            return None
        products += [(mlp.gate_proj, mlp.up_proj), (mlp.down_proj,)]
    groups = []
    for group in products:
        weights = tuple(weight for module in group if (weight := Weight.of(module)))
        alike = {(weight.kind, weight.nested is None, weight.bias is None) for weight in weights}
        most = MOST_ROWS_OF_4BIT if weights and weights[0].kind == "4bit" else MOST_ROWS
        if len(weights) < len(group) or len(alike) > 1 or batch > most:
            return None
        groups.append(weights)
    # 4-bit and int8 weights have no dtype of their own.
    floats = [weight.data for group in groups for weight in group if weight.kind == "float"]
    dtypes = {tensor.dtype for tensor in (*floats, *(norm.weight for norm in norms))}
    return groups if len(dtypes) == 1 else None
