"""The rotary position embedding (RoFormer, arXiv 2104.09864) of each layer, applied and undone.

Models differ in which channels they pair, in how many they rotate, and in which layers. Nothing of
that is taken from a model's name: the model's own functions are tried on what its layers really do
to one token, which attends to itself alone, so that its query differs between two positions by
the rotation and by nothing else.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from kv_compression.layer_kinds import layer_kinds
from kv_compression.replacements import attention_function

if TYPE_CHECKING:
    # Whoever only compares runs need not wait for it.
    from transformers import PreTrainedModel

Angles = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Apply = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Transformers gives special meanings to names that hold "flash" or "/".
_REGISTERED_NAME = "kv_compression_probe"

# Near ones turn the fast channels, the last one a model was made for the slow ones, too.
_POSITIONS = (0, 1, 37)
_MOST_POSITIONS = 2048  # where a model does not say


@dataclass(frozen=True)
class Rotary:
    """Rotation of one layer's queries and keys by position, exactly as the layer does it.

    angles: (tensor, positions (B, N)) -> cosine and sine, (B, N, R) each, of the first R channels
        of a head; R is 0 in a layer that does not rotate.
    apply: the model's own (queries, keys, cosine, sine) -> both rotated.
    """

    angles: Angles
    apply: Apply

    def rotate(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate (B, heads, N, D) by angles (B, N or 1, R); channels beyond R stay."""
        width = cos.shape[-1]
        if width == 0:
            return states
        turned, rest = states.split([width, states.shape[-1] - width], dim=-1)
        turned, _ = self.apply(turned, turned[:, :1], cos, sin)
        return torch.cat([turned, rest], dim=-1)

    def undo(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What (B, heads, N, D) was before it was rotated to `positions`, (B, N)."""
        cos, sin = self.angles(states, positions)
        # Some models also scale by the rotation's length, which is 1 otherwise.
        squared_length = cos.square() + sin.square()
        return self.rotate(states, cos / squared_length, -sin / squared_length)

    def mean_angles(
        self, states: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, (B, 1, R) each, of the mean rotation over `positions`, (B, N)."""
        cos, sin = self.angles(states, positions)
        return cos.mean(dim=1, keepdim=True), sin.mean(dim=1, keepdim=True)


_KNOWN: WeakKeyDictionary[PreTrainedModel, dict[int, Rotary | None]] = WeakKeyDictionary()


def rotations(model: PreTrainedModel) -> dict[int, Rotary | None]:
    """The rotation of each full layer, by the `id` of its attention; None where it is not known.

    The first time that a model is asked about costs a forward of one token at a few positions.
    Raises ValueError when the model does not let its attention be chosen.
    """
    if model not in _KNOWN:
        _KNOWN[model] = dict(_found(model))
    return _KNOWN[model]


def reason_unsupported(model: PreTrainedModel) -> str | None:
    """Why methods that undo the rotation cannot have `model`, in a few words; None where they can.

    Raises ValueError when the model does not let its attention be chosen.
    """
    known = list(rotations(model).values())
    unknown = [layer for layer, rotary in enumerate(known) if rotary is None]
    if not known or unknown:
        where = "its layers rotate" if len(unknown) == len(known) else f"layer {unknown[0]} rotates"
        return f"how {where} positions is not known"
    return None


@torch.inference_mode()
def _found(model: PreTrainedModel) -> Iterator[tuple[int, Rotary | None]]:
    """What holds for each attention module, in the order in which they are called."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or _MOST_POSITIONS
    positions = sorted({min(position, most - 1) for position in (*_POSITIONS, most - 1)})
    device = next(model.get_input_embeddings().parameters()).device
    places = torch.tensor(positions, device=device)[:, None]
    queries: dict[int, tuple[torch.nn.Module, torch.Tensor]] = {}

    def note(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, None]:
        queries.setdefault(id(module), (module, query))
        groups = query.shape[1] // value.shape[1]
        return value.repeat_interleave(groups, dim=1).transpose(1, 2).contiguous(), None

    with attention_function(model, _REGISTERED_NAME, note), _noted_angles(model, places) as angles:
        model(
            # Not the first: that may be padding, whose embedding is nothing.
            input_ids=torch.full_like(places, config.vocab_size // 2),
            position_ids=places,
            use_cache=False,
        )
    kinds = layer_kinds(model.config)
    for place, (module, query) in queries.items():
        layer_idx = getattr(module, "layer_idx", None)
        if layer_idx is not None and not kinds[layer_idx].is_full:
            continue  # is never pruned
        best, least = None, _tolerance(query.dtype)
        for rotary in _candidates(module, angles):
            try:
                rest = _difference(rotary, query.float(), places.to(query.device))
            except (RuntimeError, TypeError, ValueError):
                continue  # angles and the way to apply them do not belong together
            if rest < least:
                best, least = rotary, rest
        yield place, best


@contextmanager
def _noted_angles(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[list[Angles]]:
    """What gives cosines and sines of `positions`, (B, N), to the model's layers in the block."""
    found: list[Angles] = []

    def note(module: torch.nn.Module, args: Any, options: dict[str, Any], output: Any) -> None:
        is_pair = isinstance(output, tuple) and len(output) == 2
        if not is_pair or any(part.shape[:-1] != positions.shape for part in output):
            return
        call = inspect.signature(type(module).forward).bind(module, *args, **options).arguments
        others = {name: call[name] for name in call if name not in ("self", "x", "position_ids")}
        if len(call) - len(others) == 3:
            # Of text, image rows and columns alike where a model numbers them apart.
            axes = call["position_ids"].shape[:-2]
            found.append(partial(_of_axes, partial(module, **others), axes))

    rotary = [part for part in model.modules() if "Rotary" in type(part).__name__]
    hooks = [part.register_forward_hook(note, with_kwargs=True) for part in rotary]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _of_axes(
    angles: Angles, axes: torch.Size, states: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return angles(states, positions.expand(*axes, *positions.shape))


def _candidates(attention: torch.nn.Module, angles: list[Angles]) -> Iterator[Rotary]:
    """No rotation, and all angles with the attention's way to apply them."""
    yield Rotary(_no_angles, lambda queries, keys, cos, sin: (queries, keys))
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        return
    names = list(inspect.signature(apply).parameters)
    if names[:4] == ["q", "k", "cos", "sin"]:
        yield from (Rotary(each, apply) for each in angles)


def _no_angles(states: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    nothing = states.new_empty(*positions.shape, 0)
    return nothing, nothing


def _tolerance(dtype: torch.dtype) -> float:
    """Share of a query's length that rounding explains; a wrong rotation makes it about 1."""
    return 1e-4 + 8 * torch.finfo(dtype).eps


def _difference(rotary: Rotary, query: torch.Tensor, positions: torch.Tensor) -> float:
    """Share of the query's length, (B, Hq, 1, D), that still differs once it is undone."""
    length = query.norm(dim=-1).max()
    if rotary.angles(query, positions)[0].shape[-1] > query.shape[-1] or not length > 0:
        return math.inf
    undone = rotary.undo(query, positions)
    return ((undone - undone[:1]).norm(dim=-1).max() / length).item()
