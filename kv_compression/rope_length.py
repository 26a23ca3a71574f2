"""Rotations that depend on a text's length, right for each row of a batch and each request alone.

Two kinds choose their frequencies by the length of the text so far: `dynamic` (NTK-aware scaling)
beyond the length that the model was trained for, and `longrope` (arXiv 2402.13753) on either side
of it. Transformers goes by the longest row of a batch, by the part of a prompt that is read at
once, and for `dynamic` by the longest text that the model has ever seen. Here each row goes by its
own text, and the model is left as if it had seen none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from kv_compression.cache import PrunedCache
from kv_compression.replacements import replaced_forwards

if TYPE_CHECKING:
    # Whoever only compares runs need not wait for it.
    from transformers import PreTrainedConfig, PreTrainedModel

_KINDS = ("dynamic", "longrope")
_FIXED = "fixed"  # to transformers, a kind whose frequencies stay as they are


def kind(config: PreTrainedConfig) -> str | None:
    """The kind of rotation that depends on length in a model of this config; None where none."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Of the whole model, or of each type of layers.
    of_layers = [part for part in parameters.values() if isinstance(part, Mapping)]
    for part in of_layers or [parameters]:
        if part.get("rope_type") in _KINDS:
            return str(part["rope_type"])
    return None


def reason_unsupported(model: PreTrainedModel) -> str | None:
    """Why texts of different length cannot be told apart in `model`; None where they can."""
    found = kind(model.config)
    if found is None or _modules(model):
        return None
    return f"where {type(model).__name__} makes its {found} rotation is not known"


def forgotten_from(model: PreTrainedModel) -> int | None:
    """Tokens of a text from which on `model.generate` sees only the newest one; None for never.

    Where longrope changes to the factors of long texts, the Phi-3 family drops its cache, so that
    the text would be read again. In transformers 5.17 all of it but the newest token has been cut
    away by then, and no later step has a cache that is long enough to be kept. A prompt that is as
    long as this is not concerned.
    """
    from transformers import GenerationMixin

    own = type(model).prepare_inputs_for_generation  # type: ignore[attr-defined]
    original = getattr(model.config, "original_max_position_embeddings", None)
    if kind(model.config) != "longrope" or own is GenerationMixin.prepare_inputs_for_generation:
        return None
    return None if original is None else original + 1


def reason_lengths_unsupported(
    model: PreTrainedModel, prompt_tokens: int, new_tokens: int
) -> str | None:
    """Why no answer of so many tokens to such a prompt is of use; None where it may be.

    `generate` gives the tokens of `model.generate` there, too: see `forgotten_from`.
    """
    first = forgotten_from(model)
    # The last new token is never read.
    if first is None or not prompt_tokens < first < prompt_tokens + new_tokens:
        return None
    return (
        f"the factors of its longrope change at {first} tokens, where transformers' generate "
        f"forgets the text before"
    )


def lengthening(
    model: PreTrainedModel, cache: PrunedCache, step: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """`step` after one more token of each answer, over the cache that `model.generate` has then."""
    first = forgotten_from(model)

    def longer_step(token: torch.Tensor) -> torch.Tensor:
        cache.answer_tokens += 1
        if first is not None:
            crossed = range(first - cache.answer_tokens, first)
            prompts = enumerate(cache.prompt_lengths or ())
            cache.hide([row for row, prompt in prompts if prompt in crossed])
        return step(token)

    return longer_step


@contextmanager
def each_row_by_its_length(model: PreTrainedModel, cache: PrunedCache) -> Iterator[None]:
    """In the block the rotation of each row goes by its text's length, as `cache` knows it.

    Where it does not, by the row's newest position. Does nothing for a model whose rotation
    does not depend on the length. Raises ValueError where `reason_unsupported` names a reason.
    """
    if problem := reason_unsupported(model):
        raise ValueError(problem)
    modules = _modules(model)
    try:
        with replaced_forwards(
            (module, partial(_by_row, module, module.forward, cache)) for module in modules
        ):
            yield
    finally:
        for module in modules:
            _forget(module)


def _modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    if kind(model.config) is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(rope_type := getattr(module, "rope_type", None), str) and rope_type in _KINDS
    ]


def _by_row(
    module: Any,
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    cache: PrunedCache,
    x: torch.Tensor,
    position_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine, (B, N, R) each, of position_ids (B, N)."""
    if cache.prompt_lengths is None:
        lengths = (position_ids.amax(dim=1) + 1).tolist()
    else:
        lengths = [prompt + cache.answer_tokens for prompt in cache.prompt_lengths]
    if len(set(lengths)) == 1:
        return _for_length(module, forward, x, position_ids, lengths[0])
    rows = [
        _for_length(module, forward, x, position_ids[row, None], length)
        for row, length in enumerate(lengths)
    ]
    cos, sin = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return cos, sin


def _for_length(
    module: Any,
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    position_ids: torch.Tensor,
    length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for texts of one length."""
    _forget(module)
    last = torch.full_like(position_ids[:, :1], length - 1)
    forward(x, last)  # chooses the frequencies
    before, module.rope_type = module.rope_type, _FIXED
    try:
        # Some choose a scale besides, by the newest position.
        cos, sin = forward(x, torch.cat([position_ids, last], dim=1))
    finally:
        module.rope_type = before
    return cos[:, :-1], sin[:, :-1]


def _forget(module: Any) -> None:
    """Put the frequencies of a module that has seen no text back."""
    module.register_buffer("inv_freq", module.original_inv_freq, persistent=False)
    module.max_seq_len_cached = module.original_max_seq_len
