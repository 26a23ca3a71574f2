"""What each layer keeps of a text: every token, a window of them, a state, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class LayerKind:
    """What one layer keeps.

    stores_tokens: keys and values of tokens are stored.
    window: tokens that a query sees at most, itself and those right before it; None for all.
    chunk: the text falls into chunks of this many tokens, and a query sees those of its own chunk
        alone; None for no chunks.
    states: sets of convolution and recurrent states that the layer keeps; 0 for none.
    """

    stores_tokens: bool = True
    window: int | None = None
    chunk: int | None = None
    states: int = 0

    @property
    def is_full(self) -> bool:
        """Whether every token's keys and values are kept, which pruning is about."""
        return self.stores_tokens and self.window is None and self.chunk is None


FULL = LayerKind()


def layer_kinds(config: PreTrainedConfig, tokens: int | None = None) -> list[LayerKind]:
    """The kind of each layer of a model of this config, as transformers' caches tell them apart.

    tokens: the length of a text with its answer. Where no layer attends to all of a longer one,
        those whose window or chunk it fits into attend to all of this one.

    Raises ValueError for layers that keep something else, or share what other layers keep.
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    text_config = config.get_text_config(decoder=True)
    if shared := getattr(text_config, "num_kv_shared_layers", None):
        raise ValueError(f"its last {shared} layers read keys that other layers store")
    types, options = get_layer_types_and_kwargs(text_config)
    span, states = options.get("sliding_window"), options.get("number_of_states", 1)
    kinds = {
        "full_attention": FULL,
        "sliding_attention": LayerKind(window=span),
        "chunked_attention": LayerKind(chunk=span),
        "linear_attention": LayerKind(stores_tokens=False, states=states),
        "conv": LayerKind(stores_tokens=False, states=states),
        "hybrid": LayerKind(states=states),
        "hybrid_sliding": LayerKind(states=states, window=span),
        # Layers without a mixer of tokens; transformers numbers them like the others.
        "moe": LayerKind(stores_tokens=False),
        "mlp": LayerKind(stores_tokens=False),
    }
    if unknown := sorted(set(types) - set(kinds)):
        raise ValueError(f"its {unknown[0]} layers are not supported")
    found = [kinds[name] for name in types]
    if tokens is not None and not any(kind.is_full for kind in found):
        found = [
            replace(kind, window=None, chunk=None)
            if tokens <= (kind.window or kind.chunk or 0)
            else kind
            for kind in found
        ]
    return found
