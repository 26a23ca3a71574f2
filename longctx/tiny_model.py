"""A tiny random model of the same kind, tried with a few tokens before the real one is loaded.

What a model's attention, or a method on it, cannot do here shows on the tiny one, in milliseconds:
no list of models is kept. A kind of which no tiny model can be made is left to its first request.
"""

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from kv_compression import attention, quantized, rope_length
from kv_compression.attention import eager
from kv_compression.attention_hook import use_attention
from kv_compression.cache import PrunedCache
from kv_compression.generation import generate
from kv_compression.layer_kinds import layer_kinds
from kv_compression.prefill import layered
from kv_compression.prefill.last_layer import last_token_alone
from kv_compression.pruning import Pruning
from longctx.errors import SettingError
from longctx.models import ModelSource
from longctx.redaction import reason
from longctx.settings import Settings

_PROMPT, _QUESTION = 24, 5  # tokens
_WORDS, _HEADS = 256, 4
_LAYERS = 4  # enough for a first layer unlike the others
_LAYERS_OF_KINDS = 8  # where a list says of which kind each is
_WIDTHS = (
    *("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *("ffn_dim", "ffn_hidden_size", "n_inner", "d_ff"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MOST_EXPERTS = 16
_SPANS = ("sliding_window", "attention_chunk_size")
_SPAN = 7  # tokens, so that a window ends within the trial's prompt
_MOST_PARAMETERS = 100_000_000
# Of float32 logits on one processor; a wrong mask or scale is off by a tenth of them.
_TOLERANCE = 1e-3

_passed: set[str] = set()  # what was tried before in this process


def check(settings: Settings, source: ModelSource, pruning: Pruning | None) -> None:
    """Raises SettingError for what the model cannot do here, whatever its weights are."""
    longest = max(settings.contexts) + settings.max_new_tokens
    batch, scope, bits = settings.batch_size > 1, settings.kv_scope, settings.kv_quant
    lengths = settings.contexts, settings.max_new_tokens
    how = settings.attn_impl, settings.prefill
    key = f"{source.config.to_json_string()} {pruning} {batch} {scope} {bits} {lengths} {how}"
    if key in _passed:
        return
    with _aside():
        model = _tiny_model(source.config, settings.trust_remote_code, longest)
        if model is not None:
            _check_positions(settings, model, longest)
            _check_rotation(settings, model)
            _check_attention(settings, model)
            _check_layered(settings, model)
            _check_request(settings, model, pruning)
    _passed.add(key)


@contextmanager
def _aside() -> Iterator[None]:
    """Nothing of the trial is left: no random state, no word of a library."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            yield
    finally:
        logger.setLevel(before)


def _tiny_model(
    config: PreTrainedConfig, trust_remote_code: bool, longest: int
) -> PreTrainedModel | None:
    """None where there can be none, or where it does not run as transformers would have it."""

    def made() -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            tiny_config(config, longest),
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            attn_implementation="eager",
        )
        return model.eval()

    try:
        with torch.device("meta"):
            size = made().num_parameters()
        if size > _MOST_PARAMETERS:
            return None  # a size of its own, which was not made smaller
        model = made()
        logits = model(_tokens(1), use_cache=False).logits
    except (
        Exception
    ):  # a guess at sizes that fit together fails in any way; nothing follows from it
        return None
    return model if logits.isfinite().all() else None


def tiny_config(config: PreTrainedConfig, longest: int) -> PreTrainedConfig:
    """A copy that keeps the kinds of layers, the heads' grouping and size, and the positions.

    A window that texts of `longest` tokens reach beyond is made to end within the trial's prompt.
    """
    tiny = copy.deepcopy(config.get_text_config())
    head_dims = [getattr(layer, "head_dim", None) for layer in tiny.per_layer_config]
    tiny.per_layer_config = None  # of what layers differ in, only this
    layers, hidden, heads = tiny.num_hidden_layers, tiny.hidden_size, tiny.num_attention_heads
    head_dim = getattr(tiny, "head_dim", None) or hidden // heads
    lists = [name for name, value in vars(tiny).items() if _is_list(value, layers)]
    few = min(layers, _LAYERS_OF_KINDS if lists else _LAYERS)
    groups = getattr(tiny, "num_key_value_heads", None)
    sizes: dict[str, Any] = {name: getattr(tiny, name)[:few] for name in lists}
    sizes |= {"num_hidden_layers": few, "num_attention_heads": _HEADS}
    sizes |= {name: _WORDS for name in vars(tiny) if name.startswith("vocab_size")}
    if groups is not None:
        sizes["num_key_value_heads"] = 1 if groups == 1 else _HEADS if groups == heads else 2
    for name, value in vars(tiny).items():
        is_limit = "position" in name or "max" in name or "window" in name
        if type(value) is int and value == hidden and not is_limit:
            sizes.setdefault(name, _HEADS * head_dim)
    sizes["hidden_size"] = _HEADS * head_dim
    sizes |= {name: 64 for name in _WIDTHS if type(getattr(tiny, name, None)) is int}
    for name in _EXPERTS:
        if type(count := getattr(tiny, name, None)) is int:
            sizes[name] = min(count, _MOST_EXPERTS)
    if not all(kind.is_full or kind.states for kind in layer_kinds(config, longest)):
        sizes |= {name: _SPAN for name in _SPANS if type(getattr(tiny, name, None)) is int}
    sizes |= _state_sizes(tiny, _HEADS * head_dim)
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if hasattr(tiny, "initializer_range"):
        sizes["initializer_range"] = 0.2  # so that attention has an effect
    for name, value in sizes.items():
        setattr(tiny, name, value)
    tiny.__dict__.pop("quantization_config", None)
    if len(set(head_dims)) > 1:
        tiny.per_layer_config = {i: {"head_dim": size} for i, size in enumerate(head_dims[:few])}
    return tiny


def _state_sizes(config: PreTrainedConfig, hidden: int) -> dict[str, int]:
    """Sizes of linear and state-space layers that fit together and are quickly computed."""
    inner = hidden * (getattr(config, "mamba_expand", None) or getattr(config, "expand", None) or 2)
    sizes = {
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_num_heads": 2},
        **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_head_dim": 16},
        **{"mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_ssm": inner},
        **{"mamba_d_head": inner // 8, "mamba_head_dim": inner // 8},
        **{"mamba_d_state": 16, "ssm_state_size": 16, "mamba_n_groups": 1, "n_groups": 1},
        **{"mamba_chunk_size": 8, "chunk_size": 8},
    }
    return {name: size for name, size in sizes.items() if hasattr(config, name)}


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _tokens(rows: int) -> torch.Tensor:
    """(rows, S) ids, none of them a special one."""
    return torch.arange(rows * _PROMPT).view(rows, -1) * 37 % (_WORDS - 3) + 3


def _check_positions(settings: Settings, model: PreTrainedModel, longest: int) -> None:
    """Raises SettingError where positions are learned one by one, and there are too few."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or longest <= positions:
        return
    # OPT's table begins with places that are none.
    tables = [
        table.num_embeddings - getattr(table, "offset", 0)
        for table in model.modules()
        if isinstance(table, nn.Embedding) and table is not model.get_input_embeddings()
    ]
    if positions in tables:
        raise SettingError(
            "CONTEXTS",
            ",".join(map(str, settings.contexts)),
            f"{settings.model_id} has {positions} learned positions, fewer than {longest} "
            f"(CONTEXTS + MAX_NEW_TOKENS)",
        )


def _check_rotation(settings: Settings, model: PreTrainedModel) -> None:
    """Raises SettingError where answers to full prompts would lose their text on the way."""
    for length in settings.contexts:
        problem = rope_length.reason_lengths_unsupported(model, length, settings.max_new_tokens)
        if problem:
            raise SettingError(
                "CONTEXTS",
                length,
                f"with MAX_NEW_TOKENS={settings.max_new_tokens}: {problem}; keep CONTEXTS + "
                f"MAX_NEW_TOKENS below it, or CONTEXTS above",
            )


class _AsAsked:
    """Attends as the run's backend would, as far as models tell one from another, on a CPU."""

    def __init__(self, settings: Settings):
        self.__name__ = settings.attn_impl
        self.check, self.attend = eager.check, eager.attend

    def features(self) -> frozenset[str]:
        """Those of the run's backend."""
        return attention.features(attention.backend(self.__name__))


def _check_attention(settings: Settings, model: PreTrainedModel) -> None:
    """Raises SettingError where our attention cannot be the model's, or is another than its own."""
    # A question that is read apart follows the text in one chunk, a new token alone.
    cuts = [_PROMPT - _QUESTION, _PROMPT - 1] if settings.kv_scope == "context" else [_PROMPT - 1]
    try:
        logits = _logits(settings, model, cuts)
    except Exception as error:  # whatever it is, the real model would meet it in every request
        raise SettingError("MODEL_ID", settings.model_id, f"cannot run: {reason(error)}") from error
    if not _is_own(logits, model):
        way_out = "; use KV_SCOPE=prompt" if _is_own(_logits(settings, model), model) else ""
        raise SettingError(
            "MODEL_ID",
            settings.model_id,
            f"cannot run: {type(model).__name__} attends in a way that is not supported "
            f"here{way_out}",
        )


def _logits(settings: Settings, model: PreTrainedModel, cuts: Sequence[int] = ()) -> torch.Tensor:
    """The model's logits over our attention and cache, of a prompt in parts."""
    cache = PrunedCache(layer_kinds(model.config))
    tokens, parts = _tokens(1), [0, *cuts, _PROMPT]
    with use_attention(model, _AsAsked(settings), cache):
        found = [
            model(
                tokens[:, first:last],
                position_ids=torch.arange(first, last)[None],
                past_key_values=cache,
                use_cache=True,
            ).logits
            for first, last in itertools.pairwise(parts)
        ]
    return torch.cat(found, dim=1)


def _is_own(logits: torch.Tensor, model: PreTrainedModel) -> bool:
    """Whether logits of the last tokens are what the model makes of them by itself."""
    own = model(_tokens(1), use_cache=False).logits[:, -logits.shape[1] :]
    difference = (logits - own).abs().max()
    return bool(difference <= _TOLERANCE * own.abs().max())


def _check_layered(settings: Settings, model: PreTrainedModel) -> None:
    """Raises SettingError where a prefill layer by layer is asked for, or chosen, and is wrong."""
    if settings.prefill == "whole":
        return
    problem = layered.reason_unsupported(model)
    if problem is None:
        try:
            cache = PrunedCache(layer_kinds(model.config))
            with (
                use_attention(model, _AsAsked(settings), cache),
                last_token_alone(model, cache),
                layered.layer_by_layer(model, cache, _tokens(1).shape, rows=_PROMPT // 3),
            ):
                logits = model(_tokens(1), past_key_values=cache, logits_to_keep=1).logits
            is_right = _is_own(logits, model)
        except NotImplementedError as error:
            problem = str(error)
        else:
            problem = None if is_right else "what its layers hand on is not only hidden states"
    elif settings.prefill == "auto":
        return  # and so goes as a whole
    if problem is not None:
        raise SettingError("PREFILL", settings.prefill, f"{problem}; use PREFILL=whole")


def _check_request(settings: Settings, model: PreTrainedModel, pruning: Pruning | None) -> None:
    """Raises SettingError where the request's own settings do not go with the model."""
    rows = 1 if settings.batch_size == 1 else 2
    mask = torch.ones(rows, _PROMPT, dtype=torch.long)
    mask[-1, : rows - 1] = 0  # the second prompt is shorter
    if pruning is not None:
        pruning = replace(pruning, keep_ratio=0.5, keep_tokens=None, prune_after=0, skip_layers=())
        if pruning.prune_every is not None:
            pruning = replace(pruning, prune_every=1)
    variable, value = "MODEL_ID", settings.model_id
    if pruning is not None:
        variable, value = "KV_MODE", settings.kv_mode
    elif settings.kv_quant != "none":
        variable, value = "KV_QUANT", settings.kv_quant
    try:
        generate(
            model,
            _tokens(rows),
            mask,
            backend=_AsAsked(settings),
            max_new_tokens=3,
            pruning=pruning,
            question_tokens=[_QUESTION] * rows if settings.kv_scope == "context" else None,
            kv_bits=quantized.BITS.get(settings.kv_quant),
        )
    except Exception as error:  # whatever it is, the real model would meet it in every request
        raise SettingError(
            variable, value, f"does not go with {settings.model_id}: {reason(error)}"
        ) from error
