"""What each quantization of the weights costs in quality.

    python benchmarks/quantization.py

Over stories that the project writes, `--tokens` of each: the perplexity, the Kullback-Leibler
divergence of the next-token distribution from that of the model that is not quantized, and how
often the most probable token is the same. Time and memory: `studies/quantization.sh`.
"""

import argparse
import math
from collections.abc import Callable
from functools import cache, partial

import torch
from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from longctx import config, models, quantization, synthetic
from longctx.prompts import PromptBuilder
from longctx.settings import Settings

Load = Callable[[], PreTrainedModel]

_FIGURES = (("perplexity", 3), ("kl_nats", 5), ("same_top_pct", 1))


def texts(arguments: argparse.Namespace) -> list[torch.Tensor]:
    """Tokens (1, S) of a few stories, each as long as it is wanted."""
    settings, _ = config.read(Settings, {"MODEL_ID": arguments.model})
    builder = PromptBuilder(models.find(settings).tokenizer, chat_template=False)
    length = arguments.tokens
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
    samples = texts(arguments)
    load = partial(_measure.load, arguments.model, arguments.dtype)
    exact = cache(load)
    for name in arguments.quantizations:
        measured = partial(measure_quality, partial(load, name), exact, samples)
        report.add({"quant_mode": name}, measured)


def lines(written: Row) -> Lines:
    """A line for each quantization."""
    return [
        ("QUANT_MODE", "perplexity", "KL, nats", "same top token %", "error"),
        *(
            [row["quant_mode"], *_report.cells(row, *_FIGURES), _report.note(row)]
            for row in written["rows"]
        ),
    ]


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = _report.parser(__doc__, "quantization")
    parser.set_defaults(model="smollm2-135m")
    none_first = sorted(quantization.names(), key="none".__ne__)
    parser.add_argument("--quantizations", type=_report.names, default=none_first)
    parser.add_argument("--tokens", type=int, default=1024, help="of a text")
    parser.add_argument("--texts", type=int, default=4)
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
