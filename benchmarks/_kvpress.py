"""kvpress, timed in its own environment, and the measuring that it shares with `peers.py`.

kvpress needs an older transformers than the rest, so this file imports nothing of this project. As
a program it reads a job from stdin, as JSON, and writes the figures as the last line of stdout.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

Figures = dict[str, Any]


def prompt(vocab_size: int, batch: int, tokens: int, number: int) -> torch.Tensor:
    """Random tokens (B, S): for a number the same in every environment."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(vocab_size, (batch, tokens), generator=generator)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(request: Callable[[], tuple[float, float, int]]) -> Figures:
    """What a request took: it returns when its first and its last token were known, and the steps.

    Peak memory is of the whole request, in bytes; None without a GPU.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    synchronize()
    began = time.perf_counter()
    first, last, steps = request()
    return {
        "ttft_ms": (first - began) * 1e3,
        "ms_per_token": (last - first) * 1e3 / steps,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def measure(run: Callable[[torch.Tensor], Figures], job: Figures) -> Figures:
    """Medians over requests after an uncounted one, each with the next prompt.

    job: vocab_size, batch, context_tokens, repeats.
    """
    shape = (job["vocab_size"], job["batch"], job["context_tokens"])
    began = time.perf_counter()
    run(prompt(*shape, number=0))
    warmup_ms = (time.perf_counter() - began) * 1e3
    results = [run(prompt(*shape, number=number)) for number in range(1, job["repeats"] + 1)]
    figures: Figures = {"warmup_ms": warmup_ms, "peak_bytes": results[-1]["peak_bytes"]}
    for name in ("ttft_ms", "ms_per_token"):
        figures[f"{name}_runs"] = [result[name] for result in results]
        figures[name] = statistics.median(figures[f"{name}_runs"])
    return figures


@torch.inference_mode()
def request(
    model: Any, press: Any, input_ids: torch.Tensor, new_tokens: int
) -> tuple[float, float, int]:
    """Greedy tokens as kvpress's own pipeline makes them: the press prunes during prefill alone."""
    cache = DynamicCache()
    with press(model):
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
    token.tolist()
    first = time.perf_counter()
    for place in range(input_ids.shape[1], input_ids.shape[1] + new_tokens - 1):
        output = model(
            token,
            past_key_values=cache,
            position_ids=torch.full_like(token, place),
            use_cache=True,
        )
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        token.tolist()
    return first, time.perf_counter(), new_tokens - 1


def main() -> None:
    """Do the job of stdin."""
    from kvpress import KnormPress

    job = json.load(sys.stdin)
    dtype, device = getattr(torch, job["dtype"]), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    with torch.device(device):
        if job["path"]:
            model = AutoModelForCausalLM.from_pretrained(job["path"], device_map=device, **options)
        else:
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**job["config"]), **options
            )
    model.eval()
    press = KnormPress(compression_ratio=1 - job["keep_ratio"])

    def run(input_ids: torch.Tensor) -> Figures:
        tokens = input_ids.to(device)
        return timed(lambda: request(model, press, tokens, job["new_tokens"]))

    packages = ("kvpress", "transformers", "torch")
    versions = {name: metadata.version(name) for name in packages}
    print(json.dumps(measure(run, job) | {"versions": versions}))


if __name__ == "__main__":
    main()
