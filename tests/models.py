"""Tiny models with random weights, of the architectures that are supported."""

import math

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "phi3": Phi3Config,
}


def tiny(architecture="llama", heads=4, kv_heads=2, layers=3, dtype=torch.float32, **options):
    """A random model of 64 hidden units; the same one for the same arguments."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 512,
        "hidden_size": 16 * heads,
        "head_dim": 16,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        # Large weights, so that the next token hangs on all the tokens before it.
        "initializer_range": 0.2,
    } | options
    if architecture in ("mistral", "phi3"):
        settings.setdefault("sliding_window", None)
    config = CONFIGS[architecture](**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Equal weights in Qwen3's key norm would make all keys' norms tie.
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def batch(lengths, seed=0, vocab_size=512):
    """Random prompts of these lengths, padded on the left: input_ids and attention_mask.

    No token comes twice in a prompt that the vocabulary suffices for: a rotation leaves norms as
    they are, so that both their keys in layer 0 would score the same under `l2` but for rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    input_ids = torch.zeros(len(lengths), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, length in enumerate(lengths):
        rounds = [
            1 + torch.randperm(vocab_size - 1, generator=generator)
            for _ in range(math.ceil(length / (vocab_size - 1)))
        ]
        input_ids[row, longest - length :] = torch.cat(rounds)[:length]
        attention_mask[row, longest - length :] = 1
    return input_ids, attention_mask
