"""What the benchmarks measure with: a model, random prompts, and what the machine can do."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, PreTrainedModel

from kv_compression import budgets, methods
from kv_compression.decode_graph import DecodeGraphs, reason_unsupported
from kv_compression.generation import Generation
from kv_compression.measure import Stopwatch, synchronize
from kv_compression.pruning import Pruning
from longctx import config, models
from longctx.settings import Settings

Result = TypeVar("Result")

MODES = ("eager", "graph", "compiled")  # how the decode step runs


def load(model_id: str, dtype: str, quant_mode: str = "none") -> PreTrainedModel:
    """The model. Raises CannotRunError, and ValueError for a quantization not to be had here."""
    settings, environ = config.read(
        Settings, {"MODEL_ID": model_id, "DTYPE": dtype, "QUANT_MODE": quant_mode}
    )
    quantization = environ.quantization(quant_mode)
    quantization.check()
    model, _ = models.load(settings, models.find(settings), quantization)
    return model


def devices_of(model: PreTrainedModel) -> set[torch.device]:
    """Where the model's weights are."""
    return {parameter.device for parameter in model.parameters()}


def prompt(model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
    """Random tokens (B, S), others at each call, on the model's device."""
    vocab_size = model.config.get_text_config().vocab_size
    device = next(model.get_input_embeddings().parameters()).device
    return torch.randint(vocab_size, (batch, tokens)).to(device)


@dataclass(frozen=True)
class UnequalHeads:
    """A method of random scores: between 0 and 0.5 in one head, 2 in another, and steps between.

    With random weights no head is worth more than another. Under adakv with a quarter kept the
    highest of 8 heads keeps about 2.4 times the average and three keep the least that is
    guaranteed; which head is which changes from layer to layer.
    """

    query_window = 0

    def score(self, layer: methods.StoredLayer) -> torch.Tensor:
        """(B, H, S) float32."""
        keys = layer.keys
        most = torch.logspace(-1, 1, keys.shape[1], 2, device=keys.device).roll(layer.layer_idx)
        return torch.rand(keys.shape[:3], device=keys.device) * most[:, None]


def pruning(
    kv_mode: str, keep_ratio: float, skip_layers: tuple[int, ...], budget: str = "uniform"
) -> Pruning | None:
    """What `generate` takes; None where everything is kept.

    Heads that compete for a budget do so by `UnequalHeads`.
    """
    if kv_mode == "none" or keep_ratio == 1:
        return None
    shared = budgets.budget_class(budget)()
    method = methods.method_class(kv_mode)() if shared.pool == "head" else UnequalHeads()
    return Pruning(method, keep_ratio, 0, skip_layers, budget=shared)


def graphs(model: PreTrainedModel, mode: str) -> DecodeGraphs | None:
    """What `generate` takes for a mode of `MODES`."""
    return None if mode == "eager" else DecodeGraphs(model, compiled=mode == "compiled")


def check(graphs: DecodeGraphs | None, batch: int, backend: str) -> None:
    """Raises ValueError, with the reason, where the step of such a request cannot be captured."""
    if graphs is not None and (
        problem := reason_unsupported(graphs.model, batch=batch, backend=backend)
    ):
        raise ValueError(problem)


def ms_per_step(result: Generation) -> float:
    """Mean time of a decode step."""
    return result.decode_ms / (max(map(len, result.new_tokens)) - 1)


@torch.inference_mode()
def plain_forward(
    model: PreTrainedModel, input_ids: torch.Tensor, attention: str = "sdpa"
) -> tuple[torch.Tensor, DynamicCache]:
    """transformers' own forward: logits (B, V) of what follows, and the whole cache."""
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        cache = DynamicCache(config=model.config)
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        model.set_attn_implementation(before)
    return output.logits[:, -1], cache


def repeated(run: Callable[[], Result], repeats: int, seconds: float = math.inf) -> list[Result]:
    """Results of `repeats` runs after an uncounted one; of fewer, but one, after `seconds`."""
    began = time.perf_counter()
    run()
    results = [run()]
    while len(results) < repeats and time.perf_counter() - began < seconds:
        results.append(run())
    return results


def decode_bytes(model: PreTrainedModel, cache_bytes: int, batch: int = 1) -> int:
    """Bytes that a decode step must read: weights, stored keys and values, and states.

    Of an embedding table a step reads a row, unless it is the output layer's too; of experts those
    that its tokens are sent to, as many as so many tokens choose on average where none is
    preferred. The scales that some quantizations keep beside their weights are not counted.
    """
    table: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    tied = table is model.get_output_embeddings().weight
    unread = 0.0 if tied else float(table.nbytes)
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    for name, weights in model.named_parameters():
        if chosen and ".experts." in name and weights.dim() > 1:
            unread += weights.nbytes * (1 - chosen / len(weights)) ** batch
    return models.weight_bytes(model) - round(unread) + cache_bytes


def limits(dtype: str) -> dict[str, Any]:
    """What this machine reads, copies and multiplies at best; on a CPU with small sizes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers, side = (1 << 31, 8192) if device.type == "cuda" else (1 << 24, 256)

    def rate(amount: float, run: Callable[[], object]) -> float:
        """`amount` a second in the fastest of five series of ten calls."""
        run()
        fastest_ms = math.inf
        for _ in range(5):
            stopwatch = Stopwatch()
            with stopwatch.running(device):
                for _ in range(10):
                    run()
            synchronize([device])
            fastest_ms = min(fastest_ms, stopwatch.total_ms() / 10)
        return amount / fastest_ms * 1e3

    data = torch.randn(numbers, device=device, dtype=torch.bfloat16)
    # As float32, two numbers in one, a sum need not convert; in parts that 32 bits can index.
    parts, halves = data.view(torch.float32).chunk(4), data.chunk(2)
    read = rate(data.numel() * 2, lambda: [part.sum() for part in parts])
    copy = rate(data.numel() * 2, lambda: halves[0].copy_(halves[1]))
    a, b = torch.randn(2, side, side, device=device, dtype=getattr(torch, dtype))
    multiply = rate(2 * side**3, lambda: torch.nn.functional.linear(a, b))
    return {
        "read_gb_per_s": read / 1e9,
        "copy_gb_per_s": copy / 1e9,
        "matmul_tflop_per_s": multiply / 1e12,
    }


def bandwidth_ms(count: int, found: dict[str, Any]) -> float:
    """Milliseconds to read `count` bytes at the higher of the two bandwidths measured."""
    return count / max(found["read_gb_per_s"], found["copy_gb_per_s"]) / 1e6


def median(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The median of a figure under `name`, and what it is of under `{name}_runs`."""
    return {name: statistics.median(values), f"{name}_runs": list(values)}
