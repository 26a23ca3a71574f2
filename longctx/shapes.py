"""Shapes of well-known models, for speed and memory without a download: `random/SHAPE`."""

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from longctx.settings import Settings
from longctx.weights import free_memory

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of DEVICE_MAP that spread a model over the GPUs that there are."""


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


RANDOM_SHAPES: dict[str, PreTrainedConfig] = {
    "mistral-7b": MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        sliding_window=None,
        rope_parameters=_rope(1e6),
    ),
    "llama-3-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters=_rope(5e5),
    ),
    "qwen2-7b": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        use_sliding_window=False,
        tie_word_embeddings=False,
        rope_parameters=_rope(1e6),
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters=_rope(1e5),
    ),
}


def random_model(
    settings: Settings, config: PreTrainedConfig, options: dict[str, Any]
) -> PreTrainedModel:
    """A model of that config with random weights, where DEVICE_MAP says.

    options: arguments of `from_pretrained`, for a model that is quantized or spread.
    """
    torch.manual_seed(settings.seed)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    spreads = settings.device_map in PLACEMENTS and torch.cuda.device_count() > 1
    if spreads and options["quantization_config"] is None:
        # Weights that no file holds are made where they belong, as a file's would be put there.
        return kind.from_pretrained(None, config=config, state_dict={}, **options)
    on_gpu = settings.device_map != "cpu" and torch.cuda.is_available()
    device = "cuda:0" if on_gpu else "cpu"
    if settings.device_map.startswith("cuda"):
        device = settings.device_map
    elif not spreads:
        options["device_map"] = device
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=options["dtype"])
    if options["quantization_config"] is None:
        return model
    unquantized = model.state_dict()
    del model
    quantized = kind.from_pretrained(None, config=config, state_dict=unquantized, **options)
    del unquantized
    # Loading leaves cycles that hold the unquantized weights.
    free_memory()
    return quantized
