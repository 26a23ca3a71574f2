"""Ours beside other ways to run the same model: time to first token, ms/token, peak memory.

    python benchmarks/peers.py --python kvpress-env/bin/python

The same model shape, prompts and share of the cache kept, in every layer: `generate` of this
project, transformers' `generate` with its growing cache and with its static cache, whose decode
step it compiles on a GPU, and kvpress, where `--python` names the Python of an environment that has
it (`python -m venv kvpress-env && kvpress-env/bin/pip install torch kvpress==0.5.5`). Figures are
medians over requests, each with a prompt of its own; the uncounted first one is the warm-up, with
all that is captured or compiled.
"""

import argparse
import gc
import itertools
import json
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmarks import _kvpress, _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.generation import generate
from longctx import config, models
from longctx.figures import gigabytes
from longctx.settings import Settings

_NO_KVPRESS = "not installed here: name the Python of an environment that has it with --python"
_HEADINGS = (
    *("what", "prefill", "kept", "TTFT ms", "decode ms/token", "peak GB", "warm-up ms", "error"),
)


class Clock(BaseStreamer):
    """When each token of transformers' `generate` was known; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """A token for each row, which is on the host."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing more comes."""


def figures(found: Row) -> Row:
    """Peak memory in GB."""
    return found | {"peak_gb": gigabytes(found.pop("peak_bytes"))}


def ours(
    model: PreTrainedModel, graphs: DecodeGraphs | None, case: Row, arguments: argparse.Namespace
) -> Row:
    """`generate` of this project."""
    _measure.check(graphs, arguments.batch, arguments.backend)

    def run(input_ids: torch.Tensor) -> Row:
        result = generate(
            model,
            input_ids,
            backend=arguments.backend,
            max_new_tokens=arguments.new_tokens,
            pruning=_measure.pruning("l2", case["keep_ratio"], ()),
            graphs=graphs,
            prefill_chunk=None if case["prefill"] == "whole" else int(case["prefill"]),
        )
        peaks = (result.peak_prefill_bytes, result.peak_decode_bytes)
        return {
            "ttft_ms": result.ttft_ms,
            "ms_per_token": _measure.ms_per_step(result),
            "peak_bytes": max((peak for peak in peaks if peak is not None), default=None),
        }

    return figures(_kvpress.measure(run, job(model.config, case, arguments)))


def theirs(model: PreTrainedModel, options: Row, case: Row, arguments: argparse.Namespace) -> Row:
    """transformers' `generate`."""

    def run(input_ids: torch.Tensor) -> Row:
        tokens, clock = input_ids.to(model.device), Clock()

        def request() -> tuple[float, float, int]:
            model.generate(  # type: ignore[operator]
                tokens,
                attention_mask=torch.ones_like(tokens),
                pad_token_id=0,  # unused, but it would be derived from a stop token
                do_sample=False,
                max_new_tokens=arguments.new_tokens,
                streamer=clock,
                **options,
            )
            _, first, *_, last = clock.times
            return first, last, len(clock.times) - 2

        return _kvpress.timed(request)

    model.set_attn_implementation("sdpa")
    return figures(_kvpress.measure(run, job(model.config, case, arguments)))


def job(model_config: Any, case: Row, arguments: argparse.Namespace) -> Row:
    """What is measured, for this environment and another one."""
    return {
        "vocab_size": model_config.get_text_config().vocab_size,
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "context_tokens": arguments.context,
        "keep_ratio": case["keep_ratio"],
        "new_tokens": arguments.new_tokens,
        "repeats": arguments.repeats,
    }


def kvpress(case: Row, arguments: argparse.Namespace) -> Row:
    """kvpress in its own environment."""
    if arguments.python is None:
        raise ValueError(_NO_KVPRESS)
    gc.collect()
    torch.cuda.empty_cache()
    source = models.find(config.read(Settings, {"MODEL_ID": arguments.model})[0])
    where = {"config": source.config.to_dict()} if source.is_random else {"path": source.path}
    done = subprocess.run(
        [arguments.python, Path(__file__).with_name("_kvpress.py")],
        input=json.dumps({"path": None} | where | job(source.config, case, arguments)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return figures(json.loads(done.stdout.splitlines()[-1]))


def run_here(arguments: argparse.Namespace, report: Report) -> None:
    """Every peer of this environment; the model is free again at the end."""
    model = _measure.load(arguments.model, arguments.dtype)
    for mode in arguments.modes:
        graphs = _measure.graphs(model, mode)
        for way, keep_ratio in itertools.product(arguments.ways, (1.0, arguments.keep)):
            case = {"peer": f"ours, {mode}", "prefill": way, "keep_ratio": keep_ratio}
            report.add(case, partial(ours, model, graphs, case, arguments))
    for name, options in (
        ("transformers, dynamic cache", {}),
        ("transformers, static cache", {"cache_implementation": "static"}),
    ):
        case = {"peer": name, "prefill": "whole", "keep_ratio": 1.0}
        report.add(case, partial(theirs, model, options, case, arguments))


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every peer."""
    run_here(arguments, report)
    case = {"peer": "kvpress, Knorm", "prefill": "whole", "keep_ratio": arguments.keep}
    report.add(case, partial(kvpress, case, arguments))


def lines(written: Row) -> Lines:
    """A line for each peer."""
    table: Lines = [_HEADINGS]
    for row in written["rows"]:
        figures = ("ttft_ms", 1), ("ms_per_token", 2), ("peak_gb", 2), ("warmup_ms", 0)
        case = row["peer"], row["prefill"], _report.share(row["keep_ratio"])
        table.append([*case, *_report.cells(row, *figures), _report.note(row)])
    return table


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "peers")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--keep", type=float, default=0.25, help="share kept by those that prune")
    parser.add_argument(
        "--modes", type=_report.names, default=["graph"], help="decode steps of ours"
    )
    parser.add_argument(
        "--ways", type=_report.names, default=["whole", "4096"], help="whole, or rows of a chunk"
    )
    parser.add_argument("--backend", default="sdpa", help="our attention backend")
    parser.add_argument("--new-tokens", type=int, default=65, help="of a request; 2 or more")
    parser.add_argument("--repeats", type=int, default=3, help="requests of a peer")
    parser.add_argument("--python", help="Python of an environment with kvpress")
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
