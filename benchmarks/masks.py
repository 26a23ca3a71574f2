"""Prefill time under FlexAttention's masks against dense attention, and the blocks they skip.

    python benchmarks/masks.py --output logs/masks.json

Random prompts on a model with random weights; time to first token, median of `--repeats` after one
uncounted request. `sdpa` and `causal` compute dense causal attention, the others skip blocks;
speed-ups are over `causal`, the same kernel. A length that does not fit into memory is part of the
table.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.table import Table
from transformers import PreTrainedModel

from flex_pipeline import masks
from flex_pipeline.masked_attention import MaskedFlex
from kv_compression.generation import generate
from longctx import config, environment, models
from longctx.console import stdout
from longctx.results import gigabytes, write_whole
from longctx.settings import Settings
from longctx.tables import figure

Row = dict[str, Any]


def backends(window: int, sinks: int) -> dict[str, str | MaskedFlex]:
    """What is compared, by the name in the table."""
    return {
        "sdpa": "sdpa",
        "causal": MaskedFlex(masks.causal()),
        f"sliding_window({window})": MaskedFlex(masks.sliding_window(window)),
        f"sink_window({sinks}, {window})": MaskedFlex(masks.sink_window(sinks, window)),
    }


def measure(
    model: PreTrainedModel, backend: str | MaskedFlex, context_tokens: int, repeats: int
) -> Row:
    """Prefill of one random prompt of `context_tokens`; `ttft_ms` is None when out of memory."""
    prompt = torch.randint(model.config.vocab_size, (1, context_tokens))
    try:
        results = [
            generate(model, prompt, backend=backend, max_new_tokens=1) for _ in range(repeats + 1)
        ][1:]
    except torch.OutOfMemoryError:
        return {"ttft_ms": None}
    return {
        "ttft_ms": statistics.median(result.ttft_ms for result in results),
        "ttft_ms_runs": [result.ttft_ms for result in results],
        "peak_prefill_gb": gigabytes(results[-1].peak_prefill_bytes),
        "kernel": "+".join(results[-1].kernels["prefill"]),
        **({} if isinstance(backend, str) else backend.figures()),
    }


def table_of(rows: list[Row]) -> Table:
    """A line for each length and mask."""
    table = Table()
    for heading in ("mask", "kernel"):
        table.add_column(heading, no_wrap=True)
    for heading in ("context", "TTFT ms", "speed-up", "skipped %", "peak GB"):
        table.add_column(heading, justify="right")
    for row in rows:
        dense = next(
            other
            for other in rows
            if other["mask"] == "causal" and other["context_tokens"] == row["context_tokens"]
        )
        both = row["ttft_ms"] and dense["ttft_ms"]
        table.add_row(
            row["mask"],
            row.get("kernel", "out of memory"),
            f"{row['context_tokens']:,}",
            figure(row["ttft_ms"], 1),
            figure(dense["ttft_ms"] / row["ttft_ms"] if both else None, 2),
            figure(row.get("block_sparsity_pct"), 1),
            figure(row.get("peak_prefill_gb"), 2),
        )
    return table


def lengths(text: str) -> list[int]:
    """The numbers of a comma-separated list."""
    return list(map(int, text.split(",")))


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="random/mistral-7b")
    parser.add_argument("--contexts", type=lengths, default=[8192, 16384, 32768, 65536])
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("logs/masks.json"))
    arguments = parser.parse_args()
    settings, environ = config.read(Settings, {"MODEL_ID": arguments.model})
    try:
        model, _ = models.load(settings, models.find(settings), environ.quantization())
    except config.CannotRunError as error:
        parser.error(str(error))
    torch.manual_seed(settings.seed)
    rows = [
        {"context_tokens": context_tokens, "mask": name}
        | measure(model, backend, context_tokens, arguments.repeats)
        for context_tokens in arguments.contexts
        for name, backend in backends(arguments.window, arguments.sinks).items()
    ]
    stdout.print(table_of(rows))
    written = {
        "command": shlex.join(["python", "benchmarks/masks.py", *sys.argv[1:]]),
        "model": arguments.model,
        "dtype": settings.dtype,
        "device": environment.device(),
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.output, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
