"""Random weights of a shape, for speed and memory without a download: `random/SHAPE`."""

import copy
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
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
    "gemma-3-12b": Gemma3TextConfig(
        vocab_size=262208,
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=1024,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": _rope(1e4),
        },
    ),
    "gpt-oss-20b": GptOssConfig(
        num_hidden_layers=24,
        num_local_experts=32,
        sliding_window=128,
    ),
    "qwen3-30b-a3b": Qwen3MoeConfig(  # type: ignore[call-arg]  # it takes head_dim as it comes
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40960,
        rope_parameters=_rope(1e6),
    ),
    "qwen3-next-80b": Qwen3NextConfig(
        num_hidden_layers=48,
        num_experts=512,
        num_experts_per_tok=10,
        max_position_embeddings=262144,
        rope_parameters=_rope(1e7) | {"partial_rotary_factor": 0.25},
    ),
}


def shape(name: str) -> PreTrainedConfig:
    """The config of a shape: a name above or the path of a config.json, and perhaps `@LAYERS`.

    Of a config for text and images the part for text. Raises ValueError, with the way out, for what
    is neither, and OSError for a file that cannot be read.
    """
    name, at, layers = name.partition("@")
    if name in RANDOM_SHAPES:
        config = copy.deepcopy(RANDOM_SHAPES[name])
    elif name.endswith(".json"):
        config = AutoConfig.from_pretrained(name).get_text_config(decoder=True)
    else:
        raise ValueError(f"the shapes are {', '.join(RANDOM_SHAPES)}, and any path/to/config.json")
    whole = config.num_hidden_layers
    if not at:
        return config
    if not layers.isdecimal() or not 0 < int(layers) <= whole:
        raise ValueError(f"@{layers} is no number of layers from 1 to {whole}")
    of_layers = [
        key
        for key, value in vars(config).items()
        if isinstance(value, list) and len(value) == whole
    ]
    for key in of_layers:
        setattr(config, key, getattr(config, key)[: int(layers)])
    config.num_hidden_layers = int(layers)
    return config


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
