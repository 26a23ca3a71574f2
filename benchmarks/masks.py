"""Prefill time under FlexAttention's masks against dense attention, and the blocks they skip.

    python benchmarks/masks.py

Time to first token, median of `--repeats` requests after an uncounted one, each with a random
prompt of its own. `sdpa` and `causal` compute dense causal attention, the others skip blocks;
speed-ups are over `causal`, the same kernel. A length that does not fit into memory is part of the
table.
"""

import argparse
from functools import partial

from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from flex_pipeline import masks
from flex_pipeline.masked_attention import MaskedFlex
from kv_compression.generation import generate
from longctx.figures import gigabytes
from longctx.tables import number_text


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
    """Prefill of random prompts of `context_tokens`."""
    results = _measure.repeated(
        lambda: generate(
            model, _measure.prompt(model, 1, context_tokens), backend=backend, max_new_tokens=1
        ),
        repeats,
    )
    return {
        **_measure.median("ttft_ms", [result.ttft_ms for result in results]),
        "peak_prefill_gb": gigabytes(results[-1].peak_prefill_bytes),
        "kernel": "+".join(results[-1].kernels["prefill"]),
        **({} if isinstance(backend, str) else backend.figures()),
    }


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every mask at every length."""
    model = _measure.load(arguments.model, arguments.dtype)
    for context_tokens in arguments.contexts:
        for name, backend in backends(arguments.window, arguments.sinks).items():
            case = {"context_tokens": context_tokens, "mask": name}
            report.add(case, partial(measure, model, backend, context_tokens, arguments.repeats))


def lines(written: Row) -> Lines:
    """A line for each length and mask."""
    table: Lines = [("mask", "context", "TTFT ms", "speed-up", "skipped %", "peak GB", "kernel")]
    rows = written["rows"]
    dense = {row["context_tokens"]: row.get("ttft_ms") for row in rows if row["mask"] == "causal"}
    for row in rows:
        theirs, mine = dense.get(row["context_tokens"]), row.get("ttft_ms")
        table.append(
            [
                row["mask"],
                f"{row['context_tokens']:,}",
                number_text(mine, 1),
                number_text(theirs / mine if theirs and mine else None, 2),
                *_report.cells(row, ("block_sparsity_pct", 1), ("peak_prefill_gb", 2)),
                _report.note(row),
            ]
        )
    return table


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "masks")
    parser.add_argument("--contexts", type=_report.numbers, default=[8192, 16384, 32768, 65536])
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
