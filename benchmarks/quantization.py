"""What each quantization of the weights costs and saves: memory, time, quality.

    python benchmarks/quantization.py

Memory and time on `--model`: weights, prefill, decode for each way to run its step, the peak of a
whole request; medians over requests with random prompts after an uncounted one. Quality on
`--quality-model`, which has real weights, over stories that the project writes, `--quality-tokens`
of each: the perplexity, the Kullback-Leibler divergence of its next-token distribution from that of
the model that is not quantized, and how often the most probable token is the same.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression.generation import generate
from longctx import config, models, quantization, synthetic
from longctx.figures import gigabytes
from longctx.prompts import PromptBuilder
from longctx.run_metadata import model_name
from longctx.settings import Settings

Load = Callable[[], PreTrainedModel]

_QUALITY = "quality"
_COSTS = (("weights_gb", 2), ("prefill_ms", 1))
_HEADINGS = (
    *(
        "QUANT_MODE",
        "weights GB",
        "prefill ms",
        *(f"decode ms/token {mode}" for mode in _measure.MODES),
    ),
    *("peak GB", "perplexity", "KL, nats", "same top token %", "error"),
)


def measure_cost(load: Load, mode: str, arguments: argparse.Namespace) -> Row:
    """Time and memory of requests that decode in one way."""
    model = load()
    graphs = _measure.graphs(model, mode)
    _measure.check(graphs, 1, arguments.backend)
    results = _measure.repeated(
        lambda: generate(
            model,
            _measure.prompt(model, 1, arguments.context),
            backend=arguments.backend,
            max_new_tokens=arguments.new_tokens,
            graphs=graphs,
        ),
        arguments.repeats,
    )
    last = results[-1]
    return {
        "weights_gb": gigabytes(models.weight_bytes(model)),
        **_measure.median("prefill_ms", [result.ttft_ms for result in results]),
        **_measure.median("ms_per_token", [_measure.ms_per_step(result) for result in results]),
        "peak_gb": _measure.peak_gb(last.peak_prefill_bytes, last.peak_decode_bytes),
        "kernel": "+".join(last.kernels["decode"]),
    }


def texts(arguments: argparse.Namespace) -> list[torch.Tensor]:
    """Tokens (1, S) of a few stories, each as long as it is wanted."""
    settings, _ = config.read(Settings, {"MODEL_ID": arguments.quality_model})
    builder = PromptBuilder(models.find(settings).tokenizer, chat_template=False)
    length = arguments.quality_tokens
    stories = synthetic.stories(0, arguments.texts, 2 * length, builder.count_tokens)
    return [
        torch.tensor([builder.tokenizer(story["document"]["text"]).input_ids[:length]])
        for story in stories
    ]


@torch.inference_mode()
def measure_quality(load: Load, reference: Load, samples: list[torch.Tensor]) -> Row:
    """Means over all tokens but the first of each text."""
    model, exact = load(), reference()
    surprise, divergence, same = [], [], []
    for tokens in samples:
        mine, theirs = (
            either(tokens.to(either.device)).logits[0, :-1].float().log_softmax(dim=-1)
            for either in (model, exact)
        )
        following = tokens[0, 1:, None].to(mine.device)
        surprise.append(-mine.gather(1, following).mean())
        divergence.append((theirs.exp() * (theirs - mine)).sum(dim=-1).mean())
        same.append((mine.argmax(dim=-1) == theirs.argmax(dim=-1)).float().mean())
    mean_surprise, kl, share = (
        torch.stack(each).mean().item() for each in (surprise, divergence, same)
    )
    return {
        "perplexity": math.exp(mean_surprise),
        "kl_nats": kl,
        "same_top_pct": 100 * share,
        "tokens": sum(tokens.shape[1] - 1 for tokens in samples),
    }


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every quantization; its model is free again before the next."""
    has_quality = arguments.quality_model != "none"
    samples = texts(arguments) if has_quality else []
    of_quality = partial(_measure.load, arguments.quality_model, arguments.dtype)
    exact = cache(of_quality)
    for name in arguments.quantizations:
        load = cache(partial(_measure.load, arguments.model, arguments.dtype, name))
        for mode in arguments.modes:
            case = {"quant_mode": name, "measured": mode}
            report.add(case, partial(measure_cost, load, mode, arguments))
        load.cache_clear()
        if has_quality:
            case = {
                "quant_mode": name,
                "measured": _QUALITY,
                "model": model_name(arguments.quality_model),
            }
            report.add(case, partial(measure_quality, partial(of_quality, name), exact, samples))


def lines(written: Row) -> Lines:
    """A line for each quantization."""
    table: Lines = [_HEADINGS]
    rows = written["rows"]
    for name in dict.fromkeys(row["quant_mode"] for row in rows):
        mine = {row["measured"]: row for row in rows if row["quant_mode"] == name}
        quality = mine.get(_QUALITY, {})
        costs = [row for row in mine.values() if "weights_gb" in row]
        peaks = [row["peak_gb"] for row in costs if row["peak_gb"]]
        table.append(
            [
                name,
                *_report.cells(costs[0] if costs else {}, *_COSTS),
                *(
                    _report.cells(mine.get(mode, {}), ("ms_per_token", 2))[0]
                    for mode in _measure.MODES
                ),
                *_report.cells({"peak_gb": max(peaks, default=None)}, ("peak_gb", 2)),
                *_report.cells(quality, ("perplexity", 3), ("kl_nats", 5), ("same_top_pct", 1)),
                _report.note(next((row for row in mine.values() if "error" in row), {})),
            ]
        )
    return table


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "quantization")
    none_first = sorted(quantization.names(), key="none".__ne__)
    parser.add_argument("--quantizations", type=_report.names, default=none_first)
    parser.add_argument("--modes", type=_report.names, default=["eager", "graph"])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--backend", default="sdpa", help="the attention backend")
    parser.add_argument("--new-tokens", type=int, default=33, help="of a request; 2 or more")
    parser.add_argument("--repeats", type=int, default=3, help="requests of a case")
    parser.add_argument("--quality-model", default="smollm2-135m", help="none: only time, memory")
    parser.add_argument("--quality-tokens", type=int, default=1024)
    parser.add_argument("--texts", type=int, default=4)
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
