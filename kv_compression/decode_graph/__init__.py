"""Decoding without the host: a captured CUDA graph of the step, one for each batch size.

A decode loop in Python launches some thousand kernels a token and is bound by that, whatever the
cache holds. Here the step is captured once. Where each layer's keys and values lie and how many
there are is read from a table on the device, so that the same graph serves every request, pruned or
not, of every length, with true positions and with padding. Caches whose heads store different
numbers of tokens have a graph of their own, with more programs for attention.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from kv_compression import out_of_memory, rope_length
from kv_compression.attention import Backend
from kv_compression.decode_graph.table import is_ragged
from kv_compression.layer import PrunedLayer
from kv_compression.layer_kinds import layer_kinds
from kv_compression.pruning import Pruning

if TYPE_CHECKING:
    from kv_compression.decode_graph.step import DecodeStep


class CannotBeCapturedError(ValueError):
    """What a model does in its decode step cannot be a graph; the message says what."""


class DecodeGraphs:
    """The captured steps of one model, kept over its requests.

    compiled: let torch compile the model's forward first; that takes a while, once a batch size,
        and can help models whose layers have no fused kernels here.
    Ask `reason_unsupported` first.
    """

    kernels = frozenset({"triton split-kv"})
    """What computes attention, whatever backend prefills."""

    def __init__(self, model: PreTrainedModel, *, compiled: bool = False):
        self.model = model
        self._compiled = torch.compile(model.forward, dynamic=False) if compiled else None
        self._steps: dict[tuple[int, bool], DecodeStep] = {}
        self._pool: Any = None

    def capture(
        self, layers: Sequence[PrunedLayer], token: torch.Tensor, seen_tokens: torch.Tensor
    ) -> float:
        """Have the step for batches of this kind; the ms that it took, 0 where it was there.

        Arguments as of `steps`. The cache's next place is written to. Raises CannotBeCapturedError.
        """
        from kv_compression.decode_graph.step import DecodeStep

        kind = len(token), is_ragged(layers)
        if kind in self._steps:
            return 0.0
        step = DecodeStep(self.model, layers, self._compiled)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        step.begin(layers, token, seen_tokens)
        try:
            capture_ms = step.capture(self._pool)
        except (RuntimeError, TypeError, AttributeError) as error:
            if out_of_memory.cause(error) is not None:
                raise
            # A model may do in its forward what no graph can hold, such as ask the device.
            raise CannotBeCapturedError(f"its step cannot be captured: {error}") from error
        self._steps[kind] = step
        return capture_ms

    def steps(
        self,
        layers: Sequence[PrunedLayer],
        token: torch.Tensor,
        seen_tokens: torch.Tensor,
        count: int,
    ) -> Iterator[list[list[int]]]:
        """For up to `count` steps and each row its token and whether its logits are NaN.

        layers: the cache's, with room for `count` tokens; they must stay where they are.
        token: (B,) int64, the newest, not in the cache yet.
        seen_tokens: (B, 1) int64, tokens of each row before it.
        """
        step = self._steps[len(token), is_ragged(layers)]
        step.begin(layers, token, seen_tokens)
        yield from step.tokens(count)


def reason_unsupported(  # noqa: PLR0911 a reason each
    model: PreTrainedModel,
    *,
    batch: int = 1,
    backend: str | Backend = "sdpa",
    pruning: Pruning | None = None,
    kv_bits: int | None = None,
) -> str | None:
    """Why the step of such a request cannot be captured; None where it can."""
    if not isinstance(backend, str):
        return "the attention is not one of the backends, and no other kernel can stand for it"
    if kv_bits is not None:
        return "a quantized cache is read as floats made anew at every step"
    if pruning is not None and pruning.prune_every is not None:
        return "the cache is pruned again between steps"
    parameters = list(model.parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        return "the model is split over processes"
    devices = {parameter.device for parameter in parameters}
    if any(device.type != "cuda" for device in devices):
        return "it needs a CUDA GPU"
    if len(devices) > 1:
        return "the model is split over GPUs"
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton, which comes with torch for CUDA"
    return reason_model_unsupported(model, batch)


def reason_model_unsupported(model: PreTrainedModel, batch: int) -> str | None:
    """The same of the model alone, wherever it lies."""
    config = model.config.get_text_config()
    head_dims = {
        getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        for layer in config.per_layer_config
    }
    kinds = layer_kinds(config)
    if any(kind.states for kind in kinds):
        return "the states of its linear layers do not stay where they are"
    if any(kind.chunk for kind in kinds):
        return "what its layers with chunks see jumps between steps"
    # Multi-head latent attention has a size of keys that is not the values'.
    is_latent = getattr(config, "kv_lora_rank", None) is not None
    head_dims.add(getattr(config, "v_head_dim", min(head_dims)))
    if is_latent or any(head_dim % 16 for head_dim in head_dims):
        return "its kernel needs keys and values of a multiple of 16 channels, as many of each"
    if rope_type := rope_length.kind(config):
        return f"the host chooses the frequencies of {rope_type} rotary positions at every step"
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        from kv_compression.decode_graph.fused_layer import FusedLayer

        layers: Any = getattr(model.base_model, "layers", None)
        if layers is None or not all(FusedLayer.fits(layer, batch) for layer in layers):
            return "bitsandbytes' 8-bit products are steered by the host"
    return None
