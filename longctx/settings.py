"""The settings that all evaluation scripts share; a script's own Settings adds to them."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen

from kv_compression import attention, budgets, methods, quantized
from longctx import quantization
from longctx.config import variable

PositiveInt = Annotated[int, Ge(1)]
NaturalInt = Annotated[int, Ge(0)]
# More would be a typing error, and take all memory before anybody saw it.
Count = Annotated[int, Ge(1), Le(10_000_000)]
Contexts = Annotated[tuple[Count, ...], MinLen(1)]

_attention = partial(variable, group="attention", of="request")
_kv_cache = partial(variable, group="KV cache", of="request")
_weights = partial(variable, group="weights", of="model")
_samples = partial(variable, of="samples")
_speed = partial(variable, group="speed", of="request")
_runs = partial(variable, group="runs", of="request")


@dataclass(frozen=True)
class Settings:
    """The settings that all evaluation scripts share."""

    model_id: Annotated[str, MinLen(1)] = variable(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "Hugging Face id, local folder or `.gguf` file, the built-in `smollm2-135m`, or "
        "`random/SHAPE`: that shape with random weights, for speed and memory only; "
        "`random/SHAPE@8` has 8 layers, and SHAPE may be the path of a `config.json`",
    )
    gguf_file: str = variable(
        "", "a GGUF file of the hub id or folder MODEL_ID, converted once to bfloat16"
    )
    attn_impl: str = _attention(
        "flash2",
        "attention backend; unset on a machine without a GPU it falls to `sdpa`",
        choices=attention.names,
    )
    dataset_id: Annotated[str, MinLen(1)] = _samples(
        "synthetic",
        "hub id, a local `.json`, `.jsonl` or `.parquet` file of the same schema, or `synthetic`",
    )
    n_samples: Count = _samples(100, "samples, the first of the split")
    batch_size: Count = variable(1, "prompts in one request", of="request")
    contexts: Contexts = _samples(
        (2048, 4096, 8192, 16384, 32768), "prompt lengths in tokens, question and all included"
    )
    max_new_tokens: Count = variable(64, "longest answer in tokens", of="request")
    kv_mode: str = _kv_cache(
        "none",
        "how the prompt's KV cache is pruned; a list, as also in KEEP_RATIO, KEEP_TOKENS and "
        "KV_BUDGET, is run in all combinations, and with the full cache",
        choices=lambda: ("none", *methods.names()),
    )
    keep_ratio: Annotated[float, Gt(0), Le(1)] = _kv_cache(
        0.7,
        "fraction of the prompt's tokens kept, on average, in each head and layer that attends to "
        "all of them; windows and states stay whole",
        unused_when=("KV_MODE", "none"),
    )
    keep_tokens: PositiveInt | None = _kv_cache(
        None,
        "tokens of the prompt kept so, in place of KEEP_RATIO",
        unused_when=("KV_MODE", "none"),
    )
    kv_budget: str = _kv_cache(
        "uniform",
        "how what is kept is shared out: `uniform`; `pyramid`, less in later layers; `adakv`, a "
        "layer's heads compete by their scores; `whole_model`, all layers' do",
        choices=budgets.names,
        unused_when=("KV_MODE", "none"),
    )
    prune_after: NaturalInt = _kv_cache(
        512, "prune only prompts of at least this many tokens", unused_when=("KV_MODE", "none")
    )
    skip_layers: tuple[NaturalInt, ...] = _kv_cache(
        (0, 1), "layers that are never pruned; empty for none", unused_when=("KV_MODE", "none")
    )
    kv_scope: str = _kv_cache(
        "prompt",
        "what is pruned: the whole prompt, or the context alone, so that the question is read "
        "against the pruned cache",
        choices=("prompt", "context"),
    )
    share_prefill: str = _kv_cache(
        "on",
        "where KV_MODE and its companions are lists: read each prompt once for all caches; "
        "with KV_SCOPE=context: read a document once for all its questions; `off`: measure each by "
        "itself",
        choices=("on", "off"),
        changes_results=False,
    )
    protocol: str = variable(
        "official",
        "how prompts are built, read and pruned: as the data sets' own protocols and the settings "
        "have it, or as kvpress does, for its published tables: KV_SCOPE=context, no layer skipped "
        "or prompt spared, counts rounded down, its chat frame",
        group="KV cache",
        choices=("official", "kvpress"),
        of="samples",
    )
    prune_every: PositiveInt | None = _kv_cache(
        None,
        "prune again each time that so many tokens were added, so that long answers stay within "
        "what the prompt was pruned to",
        unused_when=("KV_MODE", "none"),
    )
    kv_quant: str = _kv_cache(
        "none",
        "format of what is kept of the prompt's keys and values",
        choices=("none", *quantized.BITS),
    )
    decode: str = _speed(
        "auto",
        "how new tokens are made: `graph`, by a captured CUDA graph, or `eager`, by calling the "
        "model for each; `auto`: graph where that can be",
        choices=("auto", "eager", "graph"),
    )
    compile: bool = _speed(
        False,
        "let torch compile the model before its decode step is captured, in place of the kernels "
        "written for it",
        unused_when=("DECODE", "eager"),
    )
    prefill: str = _speed(
        "auto",
        "the prompt through all layers at once, or one layer at a time over chunks of rows, which "
        "takes less memory; `auto`: layered for long prompts on a GPU, where the model allows it",
        choices=("auto", "whole", "layered"),
    )
    prefill_chunk: PositiveInt | None = _speed(
        None,
        "rows of a chunk, those of all prompts of a request together; unset: 6144, for more than "
        "65536 rows 3072",
        unused_when=("PREFILL", "whole"),
    )
    quant_mode: str = _weights("none", "quantization of the weights", choices=quantization.names)
    dtype: str = _weights(
        "bfloat16", "dtype of weights and cache", choices=("bfloat16", "float16", "float32")
    )
    device_map: Annotated[str, MinLen(1)] = _weights(
        "auto", "where the model goes: `auto`, `cpu`, `cuda`, `cuda:1`, `balanced`, ..."
    )
    tp_plan: str = _weights(
        "none",
        "`auto`: torchrun's processes hold a part of the model each, instead of a share of the "
        "samples",
        choices=("none", "auto"),
    )
    trust_remote_code: bool = _weights(False, "run Python code that comes with a model", of=None)
    use_safetensors: bool = _weights(
        True, "refuse weights that are not safetensors; `false`: read pickled ones where need be"
    )
    split: Annotated[str, MinLen(1)] = _samples("test", "split of a hub data set")
    dataset_config: str | None = _samples(
        None,
        "configuration of a hub data set, where it has several; `{context}` in it stands for the "
        "context length",
    )
    truncate: str = _samples(
        "middle",
        "what a document too long for its context loses, or `skip` to leave the sample out; "
        "`head` and `tail` say which end is kept, `never` keeps the document whole",
        choices=("middle", "head", "tail", "skip", "never"),
    )
    chat_template: str = _samples(
        "auto",
        "wrap prompts in the tokenizer's chat template; `auto`: where it has one that helps",
        choices=("auto", "on", "off"),
    )
    enable_thinking: str = _samples(
        "auto",
        "whether the chat template asks for a thought before the answer, where it has a say; "
        "`auto`: as the template does of its own",
        choices=("auto", "on", "off"),
        unused_when=("CHAT_TEMPLATE", "off"),
    )
    warmup: Annotated[int, Ge(0), Le(1000)] = _runs(
        1, "uncounted requests before each context length"
    )
    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = _samples(
        0, "seed of synthetic data, random weights and bootstrap"
    )
    logdir: Annotated[str, MinLen(1)] = _runs(
        "./logs", "folder for the results", changes_results=False
    )
    save_prompts: bool = _runs(
        False, "keep each prompt's text in the full results", changes_results=False
    )
    resume: bool = _runs(
        False, "go on with an unfinished run of the same settings in LOGDIR", changes_results=False
    )
    skip_done: bool = _runs(
        False,
        "end at once where LOGDIR has a finished run of these settings",
        changes_results=False,
    )
    oom: str = _runs(
        "skip",
        "after running out of GPU memory: skip the rest of that context length, stop before longer "
        "ones too, or retry with half the batch",
        choices=("skip", "stop", "retry_smaller_batch"),
    )
    wandb_mode: str = _runs(
        "online",
        "Weights & Biases; without credentials a run says so and goes on",
        choices=("online", "offline", "disabled", "shared"),
        changes_results=False,
    )
    wandb_project: Annotated[str, MinLen(1)] = _runs(
        "long-context-inference", "W&B project", changes_results=False
    )
    wandb_entity: str | None = _runs(
        None, "W&B user or team; unset: your default", changes_results=False
    )


def redefault(name: str, default: Any, **metadata: Any) -> Any:
    """The field `name` of Settings with another default, for a script's own Settings.

    metadata: arguments of `variable` that change with it.
    """
    field = next(field for field in dataclasses.fields(Settings) if field.name == name)
    return dataclasses.field(default=default, metadata={**field.metadata, **metadata})
