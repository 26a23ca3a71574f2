"""Milliseconds of a decode step, against what reading its bytes once would take.

    python benchmarks/decode.py

For each batch size, length of the prompts, share of their cache kept, KV budget, and way to run the
step:
`eager` (the model's forward, kernel by kernel), `graph` (one captured CUDA graph), `compiled` (the
same of a compiled step). A figure is the median over requests of the time of the decode loop over
its steps; each request has random prompts of its own. The limit is the bytes that a step must read,
weights without the embedding table and without experts that no token is sent to, stored keys and
values, and states, over the higher of the read and copy bandwidths that were measured in the same
run. Capture and compilation are in no step.
"""

import argparse
import itertools
import statistics
from functools import partial

from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.generation import Generation, generate
from kv_compression.prefill import layered
from longctx.figures import gigabytes
from longctx.tables import number_text

_PREFILL_ROWS = 6144  # layer by layer, so that a large batch's prefill is not what fails
_WARMUP_CONTEXT = 1024
_WARMUP_TOKENS = 4
_HEADINGS = (
    *("batch", "context", "kept", "step", "decode ms/token", "decode tokens/s", "over full cache"),
    *("KV GB", "limit ms", "over limit", "capture ms", "kernel"),
)


def measure(
    model: PreTrainedModel,
    graphs: DecodeGraphs | None,
    case: Row,
    arguments: argparse.Namespace,
    limits: Row,
) -> Row:
    """A case's figures. Only decoding is measured, so a short prompt warms it up."""
    batch, context_tokens = case["batch"], case["context_tokens"]
    _measure.check(graphs, batch, arguments.backend)

    def request(context_tokens: int, new_tokens: int) -> Generation:
        return generate(
            model,
            _measure.prompt(model, batch, context_tokens),
            backend=arguments.backend,
            max_new_tokens=new_tokens,
            pruning=_measure.pruning(
                arguments.kv_mode, case["keep_ratio"], skip_layers=(), budget=case["budget"]
            ),
            graphs=graphs,
            prefill_chunk=None if layered.reason_unsupported(model) else _PREFILL_ROWS,
        )

    warmup = request(min(context_tokens, _WARMUP_CONTEXT), _WARMUP_TOKENS)
    results = [request(context_tokens, arguments.new_tokens) for _ in range(arguments.repeats)]
    held = results[0].cache_bytes
    step_bytes = _measure.decode_bytes(model, held.total, batch)
    figures = _measure.median("ms_per_token", [_measure.ms_per_step(r) for r in results])
    limit_ms = _measure.bandwidth_ms(step_bytes, limits)
    return figures | {
        "tok_per_s": batch / figures["ms_per_token"] * 1e3,
        "ttft_ms": statistics.median(result.ttft_ms for result in results),
        "kv_gb": gigabytes(results[0].kv_bytes),
        "kv_full_gb": gigabytes(held.full),
        "kv_window_gb": gigabytes(held.window),
        "state_gb": gigabytes(held.state),
        "cache_kept_pct": 100 * held.kept_share,
        "step_gb": gigabytes(step_bytes),
        "limit_ms": limit_ms,
        "over_limit": figures["ms_per_token"] / limit_ms,
        "capture_ms": sum(result.capture_ms for result in (warmup, *results)),
        "peak_prefill_gb": gigabytes(results[-1].peak_prefill_bytes),
        "peak_decode_gb": gigabytes(results[-1].peak_decode_bytes),
        "decode_mode": results[-1].decode_mode,
        "kernel": "+".join(results[-1].kernels["decode"]),
    }


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every case; what one way captured is given back before the next."""
    model = _measure.load(arguments.model, arguments.dtype, arguments.quant)
    for mode in arguments.modes:
        graphs = _measure.graphs(model, mode)
        for batch, context_tokens, keep_ratio, budget in itertools.product(
            arguments.batches, arguments.contexts, arguments.keep, arguments.budgets
        ):
            if keep_ratio == 1 and budget != arguments.budgets[0]:
                continue
            case = {
                "mode": mode,
                "batch": batch,
                "context_tokens": context_tokens,
                "keep_ratio": keep_ratio,
                "budget": budget,
                "quant_mode": arguments.quant,
            }
            report.add(case, partial(measure, model, graphs, case, arguments, report.limits))


def lines(written: Row) -> Lines:
    """A line for each case, the ways of running it below each other."""
    table: Lines = [_HEADINGS]
    rows = written["rows"]
    speed = {_key(row): row.get("tok_per_s") for row in rows}
    for row in sorted(rows, key=lambda row: _key(row)[:2]):
        full = speed.get((*_key(row)[:2], 1, row["mode"]))
        gain = row["tok_per_s"] / full if full and "error" not in row else None
        table.append(
            [
                f"{row['batch']}",
                f"{row['context_tokens']:,}",
                _kept(row),
                row["mode"],
                *_report.cells(row, ("ms_per_token", 2), ("tok_per_s", 1)),
                number_text(gain, 2),
                *_report.cells(row, ("kv_gb", 2), ("limit_ms", 2), ("over_limit", 2)),
                *_report.cells(row, ("capture_ms", 0)),
                _report.note(row),
            ]
        )
    return table


def _kept(row: Row) -> str:
    """The share kept, and the budget where heads or layers do not get the same."""
    budget = row.get("budget", "uniform")
    share = _report.share(row["keep_ratio"])
    return share if budget == "uniform" or row["keep_ratio"] == 1 else f"{share} {budget}"


def _key(row: Row) -> tuple[int, int, float, str]:
    return row["batch"], row["context_tokens"], row["keep_ratio"], row["mode"]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "decode")
    parser.add_argument("--batches", type=_report.numbers, default=[1, 8])
    parser.add_argument("--contexts", type=_report.numbers, default=[8192, 32768])
    parser.add_argument("--keep", type=_report.ratios, default=[1.0, 0.25], help="shares kept")
    parser.add_argument("--modes", type=_report.names, default=_measure.MODES)
    parser.add_argument("--kv-mode", default="l2", help="the method that prunes")
    parser.add_argument(
        "--budgets", type=_report.names, default=["uniform"], help="how what is kept is shared out"
    )
    parser.add_argument("--backend", default="sdpa", help="the attention backend")
    parser.add_argument("--quant", default="none", help="a QUANT_MODE")
    parser.add_argument("--new-tokens", type=int, default=65, help="of a request; 2 or more")
    parser.add_argument("--repeats", type=int, default=3, help="requests of a case")
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
