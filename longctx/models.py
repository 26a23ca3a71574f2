"""Tokenizer and model, from the hub, a folder, a GGUF file, a package or random weights."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from kv_compression.layer_kinds import layer_kinds
from kv_compression.pruning import check_skip_layers
from longctx import builtin, gguf, hub, weights
from longctx.config import tell_libraries
from longctx.console import notice
from longctx.errors import SettingError
from longctx.quantization import Quantization
from longctx.redaction import reason
from longctx.settings import Settings
from longctx.shapes import random_model, shape
from longctx.weights import Loading, free_memory

_RANDOM_PREFIX = "random/"
# Ten times the largest known, so that a typing error allocates nothing.
_MOST = {
    "num_hidden_layers": 2_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000,
}

# How transformers says so, of a folder and of a hub model.
_NO_SAFETENSORS = ("no file named model.safetensors", "cannot be loaded with `safetensors`")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, found out without loading its weights.

    path: what `from_pretrained` takes.
    is_random: random weights, so that quality means nothing.
    prefers_raw_prompts: the model reads plain prompts better than its own chat template.
    """

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    is_random: bool
    prefers_raw_prompts: bool


def find(settings: Settings) -> ModelSource:
    """The model's config and tokenizer. Raises SettingError when they cannot be had."""
    model_id, trust_remote_code = settings.model_id, settings.trust_remote_code
    is_random = model_id.startswith(_RANDOM_PREFIX)
    if is_random:
        path = _builtin_folder(model_id)
        with _clear_errors(model_id):
            config = shape(model_id.removeprefix(_RANDOM_PREFIX))
    else:
        path = _path(model_id, settings.gguf_file)
        if trust_remote_code:
            _note_remote_code(model_id)
        with _clear_errors(model_id):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(path, model_id, trust_remote_code)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ModelSource(path, config, tokenizer, is_random, is_random or model_id == builtin.NAME)


def find_tokenizer(
    model_id: str, trust_remote_code: bool, gguf_file: str = ""
) -> PreTrainedTokenizerBase:
    """The model's fast tokenizer, without its config. Raises SettingError."""
    if model_id.startswith(_RANDOM_PREFIX):
        raise SettingError("MODEL_ID", model_id, "is a shape without a tokenizer of its own")
    if trust_remote_code:
        _note_remote_code(model_id)
    return _tokenizer(_path(model_id, gguf_file), model_id, trust_remote_code)


def _note_remote_code(model_id: str) -> None:
    notice(f"TRUST_REMOTE_CODE is on: Python code that comes with {model_id} runs here")


def _path(model_id: str, gguf_file: str) -> str:
    """What `from_pretrained` takes; a GGUF file is converted. Raises SettingError."""
    if model_id == builtin.NAME:
        return _builtin_folder(model_id)
    file = Path(model_id)
    if gguf_file:
        file /= gguf_file
        if not Path(model_id).is_dir():
            file = _downloaded(model_id, gguf_file)
    if file.suffix.lower() == ".gguf":
        return _converted(
            file, *(("GGUF_FILE", gguf_file) if gguf_file else ("MODEL_ID", model_id))
        )
    if not Path(model_id).is_dir():
        hub.go_offline_if_unreachable()
    return model_id


def _downloaded(model_id: str, gguf_file: str) -> Path:
    hub.go_offline_if_unreachable()
    with _clear_errors(model_id):
        try:
            return Path(hf_hub_download(model_id, gguf_file))
        except EntryNotFoundError:
            raise SettingError("GGUF_FILE", gguf_file, f"{model_id} has no such file") from None


def _converted(file: Path, variable: str, value: str) -> str:
    """The folder that a GGUF file becomes. Raises SettingError."""
    logging.disable_progress_bar()
    try:
        return str(gguf.folder(file))
    except OSError as error:
        problem = f"cannot be read or converted: {error.strerror or reason(error)}"
    except Exception as error:  # what a file that is not whole makes libraries raise has no end
        problem = reason(error)
    raise SettingError(variable, value, problem)


def _tokenizer(path: str, model_id: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    with _clear_errors(model_id):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise SettingError("MODEL_ID", model_id, "its tokenizer has no fast version, needed here")
    return tokenizer


def check(settings: Settings, source: ModelSource) -> None:
    """Raises SettingError for settings that the model's config rules out."""
    text_config = source.config.get_text_config()
    _check_config(settings, source.config)
    if settings.kv_mode != "none":
        try:
            check_skip_layers(settings.skip_layers, text_config.num_hidden_layers)
        except ValueError as error:
            raise SettingError(
                "SKIP_LAYERS", ",".join(map(str, settings.skip_layers)), f"{error}"
            ) from None
    try:
        kinds = layer_kinds(source.config, max(settings.contexts) + settings.max_new_tokens)
    except ValueError as error:
        raise SettingError("MODEL_ID", settings.model_id, str(error)) from None
    if not any(kind.is_full for kind in kinds):
        problem = f"no layer of {settings.model_id} attends to so long a text as a whole"
        for variable in ("kv_mode", "kv_quant"):
            if (value := getattr(settings, variable)) != "none":
                raise SettingError(variable.upper(), value, f"has nothing to work on: {problem}")


def note_positions(settings: Settings, source: ModelSource) -> None:
    """Say where prompts are longer than what the model was made for."""
    longest = max(settings.contexts) + settings.max_new_tokens
    positions = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions and not source.is_random:
        notice(
            f"{settings.model_id} was made for {positions} tokens; at longer CONTEXTS its quality "
            f"figures say little"
        )


def _check_config(settings: Settings, config: PreTrainedConfig) -> None:
    """Raises SettingError for a model of another kind, and for sizes that none has."""
    kind = config.model_type
    classes = getattr(config, "auto_map", None) or {}
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in classes
    if getattr(config, "is_encoder_decoder", False) or not is_causal:
        problem = f"is a {kind} model, and none that goes on with a text"
        raise SettingError("MODEL_ID", settings.model_id, problem)
    text_config = config.get_text_config()
    if getattr(text_config, "num_attention_heads", None) is None:
        problem = f"is a {kind} model, without the attention heads whose KV cache this is about"
        raise SettingError("MODEL_ID", settings.model_id, problem)
    for name, most in _MOST.items():
        # Where layers differ in it, the config as a whole has no such value.
        differs = text_config.is_heterogeneous and name != "num_hidden_layers"
        for each in text_config.per_layer_config if differs else [text_config]:
            value = getattr(each, name, None)
            if type(value) is int and not 0 < value <= most:
                problem = f"its config.json says {name}={value}, and 1 to {most} is possible"
                raise SettingError("MODEL_ID", settings.model_id, problem)


def fingerprint(source: ModelSource) -> str:
    """Changes when the weights may have: a hub model's commit, a folder's files, a shape.

    A converted model is the same wherever it was converted.
    """
    folder = Path(source.path)
    if gguf.is_converted(folder):
        return f"{folder.name} {source.config.to_json_string() if source.is_random else ''}"
    if not folder.is_dir():
        return str(getattr(source.config, "_commit_hash", None))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return str([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def load(
    settings: Settings, source: ModelSource, quantization: Quantization
) -> tuple[PreTrainedModel, Loading]:
    """The model, ready to run, and how it was loaded. Raises SettingError."""
    free_memory()
    began = time.perf_counter()
    logging.disable_progress_bar()
    # Where a hub model has no safetensors, transformers would ask a third party to convert it, and
    # load what that party proposes.
    tell_libraries("DISABLE_SAFETENSORS_CONVERSION", "1")
    if not settings.use_safetensors:
        notice(
            f"USE_SAFETENSORS is off: pickled weights of {settings.model_id} are read where it has "
            f"no others"
        )
    options: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype),
        "device_map": settings.device_map,
        "quantization_config": quantization.config(),
        "trust_remote_code": settings.trust_remote_code,
        # Attention is chosen for each request; this only keeps transformers from choosing first.
        "attn_implementation": "eager",
    }
    if settings.tp_plan != "none":
        options |= {"tp_plan": settings.tp_plan, "device_map": None}
    unused: tuple[str, ...] = ()
    if source.is_random:
        with _clear_errors(settings.model_id), weights.quiet_report():
            model = random_model(settings, source.config, options)
    else:
        with _clear_errors(settings.model_id), weights.quiet_report():
            weights.check_index(settings, source.path, source.config)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                # None stands for either kind, safetensors first.
                use_safetensors=settings.use_safetensors or None,
                weights_only=True,  # a pickle may hold tensors, and call nothing
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # said below, with the names
                **options,
            )
        model, info = loaded
        unused = weights.check_loaded(settings.model_id, model, info)
    model.eval()
    if source.is_random:
        # Random weights say nothing about where an answer ends: every answer has full length.
        model.generation_config.eos_token_id = []
    return model, Loading(time.perf_counter() - began, unused)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of all parameters and buffers in this process, shared ones counted once."""
    mine = (
        tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for tensor in (*model.parameters(), *model.buffers())
    )
    tensors = {tensor.data_ptr(): tensor for tensor in mine}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _builtin_folder(model_id: str) -> str:
    try:
        return str(builtin.folder())
    except builtin.NotInstalledError as error:
        raise SettingError("MODEL_ID", model_id, str(error)) from None


@contextmanager
def _clear_errors(model_id: str) -> Iterator[None]:
    """Turn the ways in which the hub says no into one line."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # what files of others make libraries raise has no end
        # Transformers wraps what the hub said.
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            problem = "is gated: ask for access on its page, then log in with `hf auth login`"
        elif any(
            isinstance(cause, (RepositoryNotFoundError, HFValidationError)) for cause in causes
        ):
            problem = "no such model on the hub (or private: log in with `hf auth login`)"
        elif "trust_remote_code=True" in str(error):
            problem = "needs Python code that comes with it: read it, then set TRUST_REMOTE_CODE=1"
        elif any(said in str(error) for said in _NO_SAFETENSORS):
            problem = (
                "has no weights as safetensors; USE_SAFETENSORS=false reads pickled ones, which "
                "take more trust"
            )
        elif not isinstance(error, (OSError, ValueError, SafetensorError, UnpicklingError)):
            problem = f"cannot be loaded: {type(error).__name__}: {reason(error)}"
        elif Path(model_id).is_dir():
            problem = f"cannot be loaded from this folder: {reason(error)}"
        elif isinstance(error, OSError):
            problem = (
                "is neither a folder here nor in the cache, and the hub cannot be reached or does "
                "not have it; a built-in model: MODEL_ID=smollm2-135m"
            )
        else:
            problem = reason(error)
        raise SettingError("MODEL_ID", model_id, problem) from error
