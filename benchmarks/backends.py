"""Every attention backend with every quantization, pruned and not, on one model: do they agree?

    python benchmarks/backends.py --logdir logs/backends

Runs `narrativeqa_eval.py`'s evaluation once for each cell of the grid, in one process, then prints
a table: time and memory of each cell, the kernel that ran, and in how many answers it differs from
the first backend's. `--dtype float32` leaves out what has no float32 kernel.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.table import Table

import narrativeqa_eval
from kv_compression import attention
from longctx import config, quantization
from longctx.console import stdout
from longctx.runner import Run


def run(environ: dict[str, str]) -> dict[str, Any]:
    """Run one cell; returns its full results."""
    settings, environment = config.read(narrativeqa_eval.TASK.settings, environ)
    return Run(narrativeqa_eval.TASK, settings, environment).execute()


def answers(full: dict[str, Any]) -> dict[tuple[int, str], str]:
    """Each sample's text, by context length and sample."""
    return {
        (row["context_tokens"], sample["sample_id"]): sample["output"]
        for row in full["rows"]
        for sample in row["samples"]
    }


def main() -> None:
    """Run the grid and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--contexts", default="2048,8192")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--backends", default=",".join(attention.names()))
    parser.add_argument("--quantizations", default=",".join(quantization.names()))
    parser.add_argument("--kv-modes", default="none,l2")
    parser.add_argument("--logdir", default="logs/backends")
    arguments = parser.parse_args()

    table = Table(title=f"{arguments.model}, {arguments.dtype}", title_justify="left")
    for heading in ("cell", "context", "TTFT ms", "ms/token", "peak GB", "kernels", "differ"):
        table.add_column(heading)
    cells = itertools.product(
        arguments.quantizations.split(","),
        arguments.kv_modes.split(","),
        arguments.backends.split(","),
    )
    expected: dict[tuple[str, str], dict[tuple[int, str], str]] = {}
    for quant_mode, kv_mode, backend in cells:
        environ = {
            "MODEL_ID": arguments.model,
            "DATASET_ID": "synthetic",
            "ATTN_IMPL": backend,
            "QUANT_MODE": quant_mode,
            "KV_MODE": kv_mode,
            "DTYPE": arguments.dtype,
            "CONTEXTS": arguments.contexts,
            "N_SAMPLES": str(arguments.samples),
            "MAX_NEW_TOKENS": str(arguments.max_new_tokens),
            "LOGDIR": arguments.logdir,
            "WANDB_MODE": "disabled",
        } | ({"KEEP_RATIO": "0.5"} if kv_mode != "none" else {})
        try:
            full = run(environ)
        except config.SettingError as error:
            table.add_row(f"{quant_mode} {kv_mode} {backend}", "", "", "", "", str(error), "")
            continue
        mine = answers(full)
        first = expected.setdefault((quant_mode, kv_mode), mine)
        for summary in full["ctx_summaries"]:
            here = [key for key in mine if key[0] == summary["context_tokens"]]
            differing = sum(mine[key] != first.get(key) for key in here)
            table.add_row(
                f"{quant_mode} {kv_mode} {backend}",
                f"{summary['context_tokens']}",
                *(
                    "-" if summary[key] is None else f"{summary[key]:.{decimals}f}"
                    for key, decimals in (
                        ("ttft_ms_p50", 1),
                        ("ms_per_token_decode_p50", 2),
                        ("peak_gpu_mem_gb_p95", 2),
                    )
                ),
                f"{summary['kernel_prefill']} / {summary['kernel_decode']}"
                + (" OUT OF MEMORY" if summary["n_oom"] else ""),
                f"{differing} of {len(here)}",
            )
        print(
            json.dumps({"cell": [quant_mode, kv_mode, backend], "summary": full["summary"]}),
            flush=True,
        )
    stdout.print(table)


if __name__ == "__main__":
    main()
