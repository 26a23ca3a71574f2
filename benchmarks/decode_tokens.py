"""Does a captured decode step give the tokens of the eager one, and if not, how close was the call?

    python benchmarks/decode_tokens.py --dtype float32

Random prompts of different lengths, alone and as a padded batch, answered by `eager` and by each
other way to run the step. In float32 the tokens must be the same. In bfloat16 rounding decides
close calls: at each row's first differing token, transformers' own forward over all tokens before
it says how far the two candidates' logits lie apart. Beside that gap stand the spacing of numbers
of that size in this dtype, and how far the logits of two exact attention kernels, `sdpa` and
`eager`, differ there (root mean square over the vocabulary). With a pruned cache there is no such
forward, and so no gap.
"""

import argparse
import itertools
import math
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks import _measure, _report
from benchmarks._report import Lines, Report, Row
from kv_compression.decode_graph import DecodeGraphs
from kv_compression.generation import generate

_HEADINGS = (
    *("batch", "kept", "step", "rows equal", "equal tokens", "largest gap"),
    *("spacing there", "kernels differ by", "error"),
)


def prompts(model: PreTrainedModel, batch: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and their mask (B, S), each row but the longest padded on the left."""
    input_ids = _measure.prompt(model, batch, longest)
    mask = torch.ones_like(input_ids)
    for row in range(1, batch):
        mask[row, : longest * row // (2 * batch)] = 0
    return input_ids, mask


def close_call(model: PreTrainedModel, tokens: torch.Tensor, candidates: list[int]) -> Row:
    """The logits of two candidates for the token after `tokens` (1, S)."""
    logits, other = (
        _measure.plain_forward(model, tokens, attention)[0][0].double()
        for attention in ("sdpa", "eager")
    )
    first, second = logits[candidates].tolist()
    top, next_to_top = logits.topk(2).values.tolist()
    largest = max(abs(first), abs(second))
    return {
        "gap": abs(first - second),
        "top_two_gap": top - next_to_top,
        "spacing": torch.finfo(model.dtype).eps * 2.0 ** math.floor(math.log2(largest)),
        "kernels_rms": (logits - other).square().mean().sqrt().item(),
    }


def measure(
    model: PreTrainedModel, graphs: DecodeGraphs | None, case: Row, arguments: argparse.Namespace
) -> Row:
    """How many tokens are the same, and each row's first that is not."""
    _measure.check(graphs, case["batch"], "sdpa")
    input_ids, mask = prompts(model, case["batch"], arguments.context)
    mine, theirs = (
        generate(
            model,
            input_ids,
            mask,
            backend="sdpa",
            max_new_tokens=arguments.new_tokens,
            pruning=_measure.pruning("l2", case["keep_ratio"], (0, 1)),
            graphs=way,
        ).new_tokens
        for way in (graphs, None)
    )
    equal, calls = [], []
    for row, pair in enumerate(zip(mine, theirs, strict=True)):
        place = next((n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), None)
        equal.append(arguments.new_tokens if place is None else place)
        if place is not None and case["keep_ratio"] == 1:
            before = input_ids.new_tensor(pair[0][:place])
            tokens = torch.cat([input_ids[row][mask[row].bool()], before])[None]
            call = close_call(model, tokens, [answer[place] for answer in pair])
            calls.append({"row": row, "place": place} | call)
    return {"new_tokens": arguments.new_tokens, "equal_tokens": equal, "first_differing": calls}


def run(arguments: argparse.Namespace, report: Report) -> None:
    """Every batch size, share kept and way of running the step."""
    model = _measure.load(arguments.model, arguments.dtype)
    for mode in arguments.modes:
        graphs = _measure.graphs(model, mode)
        for batch, keep_ratio in itertools.product(arguments.batches, arguments.keep):
            case = {"mode": mode, "batch": batch, "keep_ratio": keep_ratio}
            report.add(case, partial(measure, model, graphs, case, arguments))


def lines(written: Row) -> Lines:
    """A line for each case; tokens count as equal up to a row's first that differs."""
    table: Lines = [_HEADINGS]
    for row in written["rows"]:
        counts, length = row.get("equal_tokens", []), row.get("new_tokens", 0)
        whole = sum(count == length for count in counts)
        calls = row.get("first_differing", [])
        widest: Row = max(calls, key=lambda call: call["gap"], default={})
        table.append(
            [
                f"{row['batch']}",
                _report.share(row["keep_ratio"]),
                row["mode"],
                f"{whole}/{len(counts)}" if counts else "-",
                f"{sum(counts)}/{length * len(counts)}" if counts else "-",
                *_report.cells(widest, ("gap", 4), ("spacing", 4), ("kernels_rms", 4)),
                _report.note(row),
            ]
        )
    return table


def main() -> None:
    """Compare, print the table, write the rows."""
    parser = _report.parser(__doc__, "decode_tokens")
    parser.add_argument("--batches", type=_report.numbers, default=[1, 4])
    parser.add_argument("--keep", type=_report.ratios, default=[1.0, 0.25], help="shares kept")
    parser.add_argument("--modes", type=_report.names, default=["graph", "compiled"])
    parser.add_argument("--context", type=int, default=2048, help="tokens of the longest prompt")
    parser.add_argument("--new-tokens", type=int, default=64)
    _report.main(parser, run, lines)


if __name__ == "__main__":
    main()
