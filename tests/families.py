"""Tiny random models of the families that people run: every kind of layer, mixer and position."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "head_dim": 16}
_WINDOWS = {
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
_MLA = {
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}


def _rope(**parameters):
    return {"rope_parameters": {"rope_theta": 1e4, **parameters}}


_YARN = _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
_LLAMA3 = _rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
_LONGROPE = _rope(
    rope_type="longrope",
    short_factor=[1.0] * 8,
    long_factor=[2.0] * 8,
    original_max_position_embeddings=256,
)
_DYNAMIC = _rope(rope_type="dynamic", factor=2.0)
_LINEAR = _rope(rope_type="linear", factor=2.0)

# Name: what `AutoConfig.for_model` takes; the model type is the name up to a colon.
FAMILIES = {
    # full attention
    "llama": _GROUPED,
    "llama: llama3 scaling": _GROUPED | _LLAMA3,
    "llama: dynamic scaling": _GROUPED | _DYNAMIC,
    "llama: linear scaling": _GROUPED | _LINEAR,
    "mistral": _GROUPED | {"sliding_window": None},
    "qwen2": _GROUPED,
    "qwen2: yarn": _GROUPED | _YARN,
    "qwen3": _GROUPED,
    "phi3": _GROUPED | {"sliding_window": None},
    "phi3: longrope": _GROUPED
    | {"sliding_window": None, "original_max_position_embeddings": 256}
    | _LONGROPE,
    "glm4": _GROUPED,
    "granite": _GROUPED | {"embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    "smollm3": _GROUPED | {"no_rope_layers": [1, 1, 0, 1]},
    "olmo2": _GROUPED,
    "nemotron": _GROUPED,
    "stablelm": _GROUPED | {"partial_rotary_factor": 0.5},
    "gpt_neox": _SIZES,
    "gpt2": _SIZES,
    "opt": _SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "bloom": _SIZES,
    "falcon": _SIZES | {"alibi": False, "multi_query": True, "new_decoder_architecture": False},
    # windows
    "mistral: window": _GROUPED | {"sliding_window": 7},
    "phi3: window": _GROUPED | {"sliding_window": 7},
    "qwen2: windows": _GROUPED | _WINDOWS | {"use_sliding_window": True, "max_window_layers": 0},
    "starcoder2": _GROUPED | {"sliding_window": 7},
    "gemma2": _GROUPED | _WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3_text": _GROUPED | _WINDOWS | {"query_pre_attn_scalar": 16},
    "gemma3n_text": _GROUPED
    | _WINDOWS
    | {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 256, "laurel_rank": 8},
    "gemma4_text": _GROUPED
    | _WINDOWS
    | {"vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 8, "global_head_dim": 32},
    "cohere2": _GROUPED | _WINDOWS,
    "exaone4": _GROUPED | _WINDOWS,
    "olmo3": _GROUPED | _WINDOWS,
    "ministral": _GROUPED | _WINDOWS,
    "llama4_text": _GROUPED
    | {
        "attention_chunk_size": 7,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0, 1, 0],
        "num_local_experts": 4,
        "intermediate_size_mlp": 96,
        "moe_layers": [1, 3],
    },
    # states
    "qwen3_next": _GROUPED | _DELTA | _EXPERTS | {"shared_expert_intermediate_size": 48},
    "qwen3_5_text": _GROUPED | _DELTA,
    "qwen3_5_moe_text": _GROUPED | _DELTA | _EXPERTS | {"shared_expert_intermediate_size": 48},
    "olmo_hybrid": _GROUPED | _DELTA,
    "lfm2": _GROUPED | {"layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3},
    "granitemoehybrid": _GROUPED
    | {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "shared_intermediate_size": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "falcon_h1": _GROUPED
    | {
        "mamba_d_ssm": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "bamba": _GROUPED
    | {
        "attn_layer_indices": [1, 3],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "jamba": _GROUPED
    | {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "nemotron_h": _GROUPED
    | {
        "layers_block_type": ["mamba", "attention", "mlp", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "kimi_linear": _SIZES | _MLA | _DELTA | {"linear_head_dim": 16, "linear_num_heads": 4},
    # experts
    "mixtral": _GROUPED | _EXPERTS | {"sliding_window": None},
    "qwen3_moe": _GROUPED | _EXPERTS,
    "olmoe": _GROUPED | _EXPERTS,
    "granitemoe": _GROUPED | _EXPERTS,
    "gpt_oss": _GROUPED | _WINDOWS | _EXPERTS | {"rope_parameters": _YARN["rope_parameters"]},
    "deepseek_v2": _SIZES | _MLA | {"topk_method": "greedy"},
    "deepseek_v3": _SIZES | _MLA,
}


def config_of(name):
    """The tiny config of a family."""
    return AutoConfig.for_model(name.partition(":")[0], **FAMILIES[name])


def tiny(name, dtype=torch.float32):
    """A tiny random model of a family; the same one each time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Equal weights in a norm of keys would make all keys' norms tie.
            if "norm" in parameter_name and parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif "sinks" in parameter_name:
                parameter.uniform_(-1, 1)
    return model
