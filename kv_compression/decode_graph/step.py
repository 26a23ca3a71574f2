"""One decode step over buffers that do not move, captured as a CUDA graph and replayed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kv_compression.decode_graph import experts
from kv_compression.decode_graph.attention import attend
from kv_compression.decode_graph.fused_layer import FusedLayer
from kv_compression.decode_graph.linear import MOST_ROWS, linear
from kv_compression.decode_graph.table import LayerTable, PairTable
from kv_compression.decode_graph.weights import Weight
from kv_compression.layer import PrunedLayer
from kv_compression.replacements import attention_function, replaced_forwards

_REGISTERED_NAME = "kv_compression_step"


class _NewTokens(Cache):
    """Hands each layer's new key and value on to attention, which stores them itself."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new tokens alone."""
        return key_states, value_states


class DecodeStep:
    """A step of `model` for batches of one size: from one token a row to the next one.

    layers: a cache's, with as many rows and heads as all that the step will be used for.
    compiled: the model's forward compiled by torch, to be called in place of fused layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[PrunedLayer],
        compiled: Callable[..., Any] | None = None,
    ):
        batch, device = layers[0].keys.shape[0], next(model.parameters()).device
        _register_operator()
        self.model = model
        self._table = LayerTable.of(layers)
        self._forward = compiled or model
        self._is_fused = compiled is None
        self._token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self._known = torch.zeros(batch, 2, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        on_gpu = device.type == "cuda"
        self._host = [torch.empty(batch, 2, dtype=torch.long, pin_memory=on_gpu) for _ in range(2)]
        self._ready = [torch.cuda.Event() for _ in range(2)] if on_gpu else []

    def begin(
        self, layers: Sequence[PrunedLayer], token: torch.Tensor, seen_tokens: torch.Tensor
    ) -> None:
        """Go on from `token`, int64 (B,), after `seen_tokens`, (B, 1), stored in `layers`."""
        self._table.read(layers)
        self._token.copy_(token[:, None])
        self._position.copy_(seen_tokens)

    def capture(self, pool: Any) -> float:
        """Make the graph, after `begin`, in a memory pool; returns the milliseconds it took."""
        began = time.perf_counter()
        before = self._token.clone(), self._position.clone()
        # Streams, graphs and Triton go by the current device, which need not be the model's.
        with torch.cuda.device(self._token.device), self._in_place():
            side = _capture_stream(self._token.device)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                # Kernels are compiled and chosen; each time the same place in the cache is written.
                for _ in range(2):
                    self._advance()
                    self._table.added.zero_()
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool, stream=side):
                self._advance()
        self._token.copy_(before[0])
        self._position.copy_(before[1])
        torch.cuda.synchronize(self._token.device)
        return (time.perf_counter() - began) * 1e3

    def tokens(self, steps: int) -> Iterator[list[list[int]]]:
        """For each of `steps` steps and each row its token and whether its logits were NaN.

        The step after the one whose tokens are read is under way by then, so the device need not
        wait for the host; where no more tokens are asked for, that step was for nothing.
        """
        self._launch(0)
        for place in range(steps):
            if place + 1 < steps:
                self._launch(place + 1)
            self._ready[place % 2].synchronize()
            yield self._host[place % 2].tolist()

    def _launch(self, place: int) -> None:
        assert self._graph is not None
        with torch.cuda.device(self._token.device):
            self._graph.replay()
            self._host[place % 2].copy_(self._known, non_blocking=True)
            self._ready[place % 2].record()

    def _advance(self) -> None:
        """The step itself: nothing but work on the device."""
        logits = self._forward(
            input_ids=self._token,
            position_ids=self._position,
            past_key_values=_NewTokens(),
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        # A NaN is above everything.
        highest, token = logits.max(dim=-1, keepdim=True)
        self._token.copy_(token)
        self._position += 1
        self._table.added.add_(1)
        torch.cat([token, highest.isnan()], dim=1, out=self._known)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The model attends over the table, its layers fused where that can be."""
        fused = self._fused() if self._is_fused else ()
        with (
            attention_function(self.model, _REGISTERED_NAME, self._attend),
            replaced_forwards(fused),
        ):
            yield

    def _fused(self) -> Iterator[tuple[torch.nn.Module, Callable[..., torch.Tensor]]]:
        for module in self.model.modules():
            if (fused := FusedLayer.of(module, self._table, len(self._token))) is not None:
                yield module, fused
            elif experts.are_experts(module) and len(self._token) <= MOST_ROWS:
                yield module, partial(experts.forward, module)
        head = self.model.get_output_embeddings()
        weight = None if head is None else Weight.of(head)
        if weight is not None and weight.kind == "float" and len(self._token) <= MOST_ROWS:
            yield head, lambda hidden: linear(hidden[:, -1], (weight,))[:, None]

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """What transformers calls in the attention of a layer that is not fused."""
        batch, query_heads, _one, head_dim = query.shape
        pairs = self._table.pairs
        output = torch.ops.kv_compression.attend_new_token(
            query.reshape(batch, -1),
            key.reshape(batch, -1),
            value.reshape(batch, -1),
            self._table.addresses,
            self._table.starts,
            self._table.added,
            [] if pairs is None else [pairs.places, pairs.splits, pairs.owners],
            module.layer_idx,
            head_dim,
            head_dim**-0.5 if scaling is None else scaling,
            softcap,
            s_aux,
        )
        return output.view(batch, 1, query_heads, head_dim), None


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace, 32 MiB on Hopper, for each it ever saw."""
    return torch.cuda.Stream(device)


@cache
def _register_operator() -> None:
    """`attend` as an operator, torch.ops.kv_compression.attend_new_token: compiling leaves it."""

    @torch.library.custom_op("kv_compression::attend_new_token", mutates_args=())
    def operator(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        addresses: torch.Tensor,
        starts: torch.Tensor,
        added: torch.Tensor,
        pairs: list[torch.Tensor],
        layer: int,
        head_dim: int,
        scaling: float,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        return attend(
            q,
            k,
            v,
            LayerTable(addresses, starts, added, PairTable(*pairs) if pairs else None),
            layer,
            head_dim=head_dim,
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
        )

    @operator.register_fake
    def _(q: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.empty_like(q)
