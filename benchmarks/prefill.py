"""Time and peak memory of prefill, against transformers' own, and against what they could be.

    python benchmarks/prefill.py

`hf` is transformers' own forward with `sdpa`, the logits of the last token alone and a
`DynamicCache`; `whole` is ours over the whole prompt, a number is ours one layer at a time over
chunks of so many rows. With less than the whole cache kept, `--kv-mode` prunes it, layers 0 and 1
left out. Peak memory is shown over weights + kept keys and values, time over `hf`, and over the
operations of the prompt (its linear layers and causal attention) at the rate of a large matrix
product in the same run. At `--method-contexts` each KV method is a case of its own, for the share
of prefill that choosing and moving the kept tokens takes. A figure is the median over requests,
each with a random prompt of its own, after an uncounted one of the same shape.
"""

import argparse
import time
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression import methods
from kv_compression.generation import generate
from kv_compression.measure import PeakMemory, synchronize
from longctx.figures import gigabytes
from longctx.models import weight_bytes
from longctx.tables import number_text

_SKIP_LAYERS = (0, 1)
_GIB_IN_GB = 2**30 / 1e9
_HEADINGS = (
    *("context", "prefill", "KV method", "kept", "ms", "over hf", "over matmul limit"),
    *("compress %", "peak GB", "GiB", "over weights + kept KV", "kernel"),
)


def operations(model: PreTrainedModel, tokens: int) -> int:
    """Floating-point operations of a prompt's prefill: linear layers and causal attention."""
    head = model.get_output_embeddings()
    linear = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Two products over the half of all pairs, each pair a multiplication and an addition a channel.
    attention = 2 * tokens**2 * heads * head_dim * config.num_hidden_layers
    return 2 * tokens * linear + 2 * head.in_features * head.out_features + attention


def plain_request(model: PreTrainedModel, context_tokens: int) -> Row:
    """One prefill by transformers alone."""
    devices = _measure.devices_of(model)
    input_ids, memory = _measure.prompt(model, 1, context_tokens), PeakMemory(devices)
    memory.restart()
    synchronize(devices)
    began = time.perf_counter()
    logits, cache = _measure.plain_forward(model, input_ids)
    logits.argmax(dim=-1).tolist()
    ms = (time.perf_counter() - began) * 1e3
    kept = sum(keys.nbytes + values.nbytes for keys, values, *_ in cache)
    return {"ms": ms, "peak": memory.allocated(), "kv_bytes": kept}


def our_request(model: PreTrainedModel, case: Row, backend: str) -> Row:
    """One prefill by `generate`."""
    result = generate(
        model,
        _measure.prompt(model, 1, case["context_tokens"]),
        backend=backend,
        max_new_tokens=1,
        pruning=_measure.pruning(case["kv_mode"], case["keep_ratio"], _SKIP_LAYERS),
        prefill_chunk=None if case["way"] == "whole" else int(case["way"]),
    )
    return {
        "ms": result.ttft_ms,
        "compress_pct": 100 * result.compress_ms / result.ttft_ms,
        "peak": result.peak_prefill_bytes,
        "kv_bytes": result.kv_bytes,
        "prefill_mode": result.prefill_mode,
        "kernel": "+".join(result.kernels["prefill"]),
    }


def measure(model: PreTrainedModel, case: Row, arguments: argparse.Namespace, limits: Row) -> Row:
    """A case's figures."""
    if case["way"] == "hf":
        request = partial(plain_request, model, case["context_tokens"])
    else:
        request = partial(our_request, model, case, arguments.backend)
    results = _measure.repeated(request, arguments.repeats, arguments.seconds)
    last = results[-1]
    figures = _measure.median("ms", [result["ms"] for result in results])
    if "compress_pct" in last:
        figures |= _measure.median("compress_pct", [r["compress_pct"] for r in results])
        figures |= {"prefill_mode": last["prefill_mode"], "kernel": last["kernel"]}
    least_bytes = weight_bytes(model) + last["kv_bytes"]
    limit_ms = operations(model, case["context_tokens"]) / limits["matmul_tflop_per_s"] / 1e9
    return figures | {
        "limit_ms": limit_ms,
        "over_limit": figures["ms"] / limit_ms,
        "peak_gb": gigabytes(last["peak"]),
        "least_gb": gigabytes(least_bytes),
        "peak_over_least": last["peak"] / least_bytes if last["peak"] else None,
    }


def cases(arguments: argparse.Namespace) -> list[Row]:
    """What is measured, shorter contexts first."""
    found: list[Row] = []
    for context_tokens in sorted({*arguments.contexts, *arguments.method_contexts}):
        ways: list[tuple[str, str, float]] = []
        if context_tokens in arguments.contexts:
            for way in arguments.ways:
                for keep_ratio in arguments.keep if way != "hf" else [1.0]:
                    ways.append((way, "none" if keep_ratio == 1 else arguments.kv_mode, keep_ratio))
        if context_tokens in arguments.method_contexts:
            ways += [("whole", name, min(arguments.keep)) for name in methods.names()]
        about = {"context_tokens": context_tokens, "quant_mode": arguments.quant}
        for way, kv_mode, keep_ratio in dict.fromkeys(ways):
            found.append(about | {"way": way, "kv_mode": kv_mode, "keep_ratio": keep_ratio})
    return found


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every case."""
    model = _measure.load(arguments.model, arguments.dtype, arguments.quant)
    for case in cases(arguments):
        report.add(case, partial(measure, model, case, arguments, report.limits))


def lines(written: Row) -> Lines:
    """A line for each case."""
    table: Lines = [_HEADINGS]
    plain = {row["context_tokens"]: row.get("ms") for row in written["rows"] if row["way"] == "hf"}
    for row in written["rows"]:
        theirs, peak = plain.get(row["context_tokens"]), row.get("peak_gb")
        table.append(
            [
                f"{row['context_tokens']:,}",
                row["way"],
                row["kv_mode"],
                _report.share(row["keep_ratio"]),
                *_report.cells(row, ("ms", 1)),
                number_text(row["ms"] / theirs if theirs and "ms" in row else None, 3),
                *_report.cells(row, ("over_limit", 2), ("compress_pct", 2), ("peak_gb", 2)),
                number_text(peak / _GIB_IN_GB if peak else None, 2),
                *_report.cells(row, ("peak_over_least", 3)),
                _report.note(row),
            ]
        )
    return table


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "prefill")
    parser.add_argument("--contexts", type=_report.numbers, default=[8192, 32768, 131072])
    parser.add_argument(
        "--ways", type=_report.names, default=["hf", "whole", "2048", "4096", "8192"]
    )
    parser.add_argument("--keep", type=_report.ratios, default=[1.0, 0.25], help="shares kept")
    parser.add_argument("--kv-mode", default="l2", help="the method that prunes")
    parser.add_argument("--method-contexts", type=_report.numbers, default=[32768])
    parser.add_argument("--backend", default="sdpa", help="the attention backend")
    parser.add_argument("--quant", default="none", help="a QUANT_MODE")
    parser.add_argument("--repeats", type=int, default=3, help="requests of a case")
    parser.add_argument(
        "--seconds", type=float, default=6, help="no further request of a case after so many"
    )
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
