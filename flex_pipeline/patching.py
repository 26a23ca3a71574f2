"""FlexAttention for any loaded decoder-only model, as its own attention, and back again.

The mask stays the model's: transformers says which key each query sees (causal, the window of
sliding-window layers, packed sequences), and the attention mask which keys are padding, wherever
they stand. Both become a block mask, once a forward for all layers that share it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import prepare_padding_mask

from kv_compression.attention import flex
from kv_compression.layout import BLOCK, block_mask

# Transformers gives special meanings to names that hold "flash" or "/".
_REGISTERED_NAME = "flex_dense_causal"

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

MaskFunction = Callable[[Any, Any, Any, Any], torch.Tensor]


@dataclass
class FlexPatch:
    """What `enable_flex_attention_dense_causal` has patched; a context manager that undoes it.

    layers: names of the attention modules.
    kind: "MHA", "GQA" or "MQA": as many key/value heads as query heads, fewer, or one.
    previous: the attention implementation that `undo` puts back.
    """

    model: PreTrainedModel = field(repr=False)
    layers: tuple[str, ...]
    query_heads: int
    key_value_heads: int
    previous: str
    _undone: bool = field(default=False, init=False, repr=False)

    @property
    def kind(self) -> str:
        """How query heads share key/value heads."""
        if self.key_value_heads == self.query_heads:
            return "MHA"
        return "MQA" if self.key_value_heads == 1 else "GQA"

    def __str__(self) -> str:
        return (
            f"FlexAttention in {len(self.layers)} layers of {type(self.model).__name__} in place "
            f"of {self.previous}; {self.kind}, {self.query_heads} query and "
            f"{self.key_value_heads} key/value heads"
        )

    def undo(self) -> None:
        """Put the previous attention back.

        Does nothing a second time, or when the model's attention was set to something else since.
        Of several patches of one model at once, the first is the one whose `undo` counts.
        """
        is_patched = self.model.config._attn_implementation == _REGISTERED_NAME
        if is_patched and not self._undone and self.previous != _REGISTERED_NAME:
            self.model.set_attn_implementation(self.previous)
        self._undone = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def enable_flex_attention_dense_causal(model: PreTrainedModel) -> FlexPatch:
    """Let a loaded decoder-only model attend through FlexAttention, with the mask it has.

    Works with `model(...)` and `model.generate(...)`, transformers' own caches, padding on either
    side, and MHA, GQA and MQA. `print` what comes back to see what was patched; `undo()` on it, or
    the end of a `with` block, puts the previous attention back. On a model that is patched already
    it changes nothing.

    Raises ValueError for a model whose attention cannot be chosen, that is no decoder, that is
    spread over devices, or whose attention needs what FlexAttention is not given here (soft caps,
    learned sinks).
    """
    layers = _attention_layers(model)
    _refuse_unsupported(model, layers)
    AttentionInterface.register(_REGISTERED_NAME, _attend)
    AttentionMaskInterface.register(_REGISTERED_NAME, _mask)
    heads = model.config.num_attention_heads
    groups = getattr(next(iter(layers.values())), "num_key_value_groups", 1)
    patch = FlexPatch(
        model,
        tuple(layers),
        query_heads=heads,
        key_value_heads=heads // groups,
        previous=model.config._attn_implementation,
    )
    model.set_attn_implementation(_REGISTERED_NAME)
    return patch


def _attention_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__ and hasattr(module, "layer_idx")
    }


def _refuse_unsupported(model: PreTrainedModel, layers: dict[str, torch.nn.Module]) -> None:
    config, name = model.config, type(model).__name__
    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        raise ValueError(f"{name} is an encoder-decoder; only decoder-only models are supported")
    if config.get_text_config() is not config:
        raise ValueError(f"{name} holds more than a text decoder; patch the decoder alone")
    if not model._can_set_attn_implementation() or not layers:
        raise ValueError(f"{name} does not let its attention be chosen")
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ValueError(f"{name} is spread over several devices, and its mask would be on one")
    is_causal = getattr(config, "is_causal", True) and all(
        getattr(layer, "is_causal", True) for layer in layers.values()
    )
    if not is_causal or getattr(config, "use_bidirectional_attention", False):
        raise ValueError(f"{name} attends both ways; only causal models are supported")
    other = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if other:
        raise ValueError(f"{name} has layers of {', '.join(sorted(other))}, not supported here")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(f"{name} caps its attention's scores, not supported here")
    if any(hasattr(layer, "sinks") for layer in layers.values()):
        raise ValueError(f"{name} has learned attention sinks, not supported here")


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask | torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every attention layer; query (B, Hq, Q, D)."""
    if not isinstance(attention_mask, BlockMask):
        raise ValueError("give the model an attention mask of shape (B, S), not a finished one")
    if dropout or any(extra is not None for extra in (softcap, s_aux, position_bias)):
        raise ValueError(
            f"{type(module).__name__} asks for dropout, soft caps, sinks or biases; FlexAttention "
            f"is not given them here"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output, _ = flex.attend_under(query, key, value, attention_mask, scaling)
    # As transformers' own functions return it: some models only take another view of it.
    return output.contiguous(), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    *,
    mask_function: MaskFunction,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> BlockMask:
    """What transformers calls for each mask of a forward, as its own `flex_attention_mask`.

    mask_function: (batch, head, query, key) -> whether it is seen, all counted from the text's
        beginning; attention_mask (B, S) bool, false for padding.
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    # Tensors, not numbers: a step later they are other ones, and that must not compile again.
    # A copy: a static cache counts on in its own tensor before attention asks for the mask.
    queries_from = torch.as_tensor(q_offset, device=device).clone()
    keys_from = torch.tensor(kv_offset, device=device)

    def visible(
        batch: torch.Tensor, head: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        query, key = q_idx + queries_from, kv_idx + keys_from
        seen = mask_function(batch, head, query, key)
        return seen if padding is None else seen & padding[batch, key] | (query == key)

    return block_mask(
        *_blocks(visible, batch_size, q_length, kv_length, device), visible, (q_length, kv_length)
    )


def _blocks(
    visible: MaskFunction, batch: int, query_len: int, kv_len: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks are touched and which are whole, (B, query blocks, key blocks) bool each.

    One row of blocks at a time: at 65,536 tokens a tensor of all pairs would take 4 GB.
    """
    rows = torch.arange(batch, device=device)[:, None, None]
    head = torch.zeros_like(rows)
    keys = torch.arange(kv_len, device=device)
    beyond = -kv_len % BLOCK
    touched, whole = [], []
    for first in range(0, query_len, BLOCK):
        queries = torch.arange(first, min(first + BLOCK, query_len), device=device)[:, None]
        seen = visible(rows, head, queries, keys).expand(batch, queries.shape[0], kv_len)
        pairs = torch.nn.functional.pad(seen, (0, beyond)).unflatten(2, (-1, BLOCK))
        touched.append(pairs.any(dim=3).any(dim=1))
        whole.append(pairs.all(dim=3).all(dim=1) & (queries.shape[0] == BLOCK))
    return torch.stack(touched, dim=1), torch.stack(whole, dim=1)
