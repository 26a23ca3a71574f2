"""Every attention backend with every quantization, pruned and not, on one model: do they agree?

    python benchmarks/backends.py --logdir logs/backends

Runs the evaluation of `narrativeqa_eval.py` on synthetic stories once for each cell of the grid, in
one process, then prints a table of all results in the folder: time and memory of each cell, the
kernels that ran, and in how many answers it differs from `eager`, or from `sdpa` where that is
missing. `--table` prints the table of what is there and runs nothing.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.markup import escape
from rich.table import Table

import narrativeqa_eval
from kv_compression import attention
from longctx import config, outcomes, quantization
from longctx.console import notice, stdout
from longctx.runner import Run
from longctx.tables import figure

Cell = tuple[str, str, str]  # quantization, KV mode, backend
Answers = dict[tuple[int, str], str]

_REFERENCES = ("eager", "sdpa")


def run(arguments: argparse.Namespace, cell: Cell) -> None:
    """Run one cell; a setting that cannot be used here is noted."""
    quant_mode, kv_mode, backend = cell
    environ = {
        "MODEL_ID": arguments.model,
        "DATASET_ID": "synthetic",
        "ATTN_IMPL": backend,
        # A captured step has one attention kernel, whatever the backend.
        "DECODE": "eager",
        "QUANT_MODE": quant_mode,
        "KV_MODE": kv_mode,
        "DTYPE": arguments.dtype,
        "CONTEXTS": arguments.contexts,
        "N_SAMPLES": str(arguments.samples),
        "MAX_NEW_TOKENS": str(arguments.max_new_tokens),
        "LOGDIR": arguments.logdir,
        "WANDB_MODE": "disabled",
    }
    if kv_mode != "none":
        environ["KEEP_RATIO"] = "0.5"
    try:
        Run(narrativeqa_eval.TASK, *config.read(narrativeqa_eval.TASK.settings, environ)).execute()
    except config.CannotRunError as error:
        notice(str(error))


def read(logdir: Path) -> dict[Cell, dict[str, Any]]:
    """The latest full results of each cell in the folder."""
    found = {}
    for path in sorted(logdir.glob("*_full.json"), key=lambda path: path.name[-26:]):
        full = json.loads(path.read_text(encoding="utf-8"))
        values = full["run_meta"]["variables"]
        found[values["QUANT_MODE"], values["KV_MODE"], values["ATTN_IMPL"]] = full
    return found


def answers(full: dict[str, Any]) -> Answers:
    """Each sample's text, by context length and sample."""
    return {
        (row["context_tokens"], sample["sample_id"]): sample["output"]
        for row in full["rows"]
        for sample in row["samples"]
    }


def differing(mine: Answers, reference: Answers, context_tokens: int) -> str:
    """In how many of the samples of a context length two cells answer differently."""
    shared = [key for key in mine if key[0] == context_tokens and key in reference]
    return f"{sum(mine[key] != reference[key] for key in shared)}/{len(shared)}"


def table_of(results: dict[Cell, dict[str, Any]]) -> Table:
    """A line for each cell and context length."""
    meta = next(iter(results.values()))["run_meta"]
    title = f"{meta['model']}, {meta['variables']['DTYPE']}, {meta['device']['name']}"
    table = Table(title=escape(title), title_justify="left")
    for heading in (
        "quant",
        "KV",
        "attn",
        "context",
        "samples",
        "TTFT ms",
        "decode ms/token",
        "peak GB",
    ):
        table.add_column(heading, justify="left" if heading in ("quant", "KV", "attn") else "right")
    table.add_column("kernels")
    table.add_column("differ", justify="right")
    for cell in sorted(results):
        mine = answers(results[cell])
        others = (results.get((*cell[:2], backend)) for backend in _REFERENCES)
        reference = next((answers(other) for other in others if other), {})
        for summary in results[cell]["ctx_summaries"]:
            kernels = dict.fromkeys([summary["kernel_prefill"], summary["kernel_decode"]])
            table.add_row(
                *cell,
                f"{summary['context_tokens']:,}",
                outcomes.samples(summary),
                figure(summary["ttft_ms_p50"], 1),
                figure(summary["ms_per_token_decode_p50"], 1),
                figure(summary["peak_gpu_mem_gb_p95"], 2),
                "out of memory" if summary["n_oom"] else ", ".join(kernels),
                differing(mine, reference, summary["context_tokens"]),
            )
    return table


def names(text: str) -> Iterable[str]:
    """The parts of a comma-separated list."""
    return text.split(",")


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--contexts", default="2048,8192")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--backends", type=names, default=attention.names())
    parser.add_argument("--quantizations", type=names, default=quantization.names())
    parser.add_argument("--kv-modes", type=names, default=("none", "l2"))
    parser.add_argument("--logdir", default="logs/backends")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        for cell in itertools.product(
            arguments.quantizations, arguments.kv_modes, arguments.backends
        ):
            run(arguments, cell)
    results = read(Path(arguments.logdir))
    if not results:
        parser.error(f"no results in {arguments.logdir}")
    stdout.print(table_of(results))


if __name__ == "__main__":
    main()
