"""What does pruning cost in quality, method by method, and does the scope matter?

    python benchmarks/pruning_quality.py --out logs/pruning_quality.json

Two tasks whose answer stands in the document: a pass key among sentences, and the project's own
stories. Each prompt is prefilled once for each scope; then every method prunes a copy of that cache
to each ratio and the model answers from it, greedily, as `kv_compression.generate` would.
An answer counts as right when the reference stands in its first line. Prints shares of right
answers with 95% intervals (Wilson) and writes them with each trial's outcome. `--figure FILE.png`
draws what is in `--out` and runs nothing.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.progress import track
from rich.table import Table
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import narrativeqa_eval
from kv_compression import methods
from kv_compression.attention_hook import use_attention
from kv_compression.cache import PrunedCache
from kv_compression.layer import PrunedLayer
from kv_compression.methods import PruningMethod, StoredLayer, method_class
from kv_compression.pruning import kept_count
from kv_compression.rotary import Rotary
from kv_compression.selection import select
from longctx import builtin, environment, synthetic
from longctx.console import stderr, stdout
from longctx.prompts import Parts, Prompt, PromptBuilder
from longctx.results import write_whole
from longctx.task import Sample

RATIOS = (0.9, 0.7, 0.5, 0.25)
SCOPES = ("context", "prompt")
SKIP_LAYERS = (0, 1)
NEW_TOKENS = {"pass key": 8, "stories": 16}
Cell = tuple[str, float]  # method, ratio


def all_methods() -> dict[str, PruningMethod]:
    """Every method with its defaults, and the control that keeps the wrong end of the norms."""
    found = {name: method_class(name)() for name in methods.names()}
    return found | {"l2 (high)": method_class("l2")(keep="high")}  # type: ignore[call-arg]


@dataclass(frozen=True)
class Trial:
    """A prompt and the strings of which one must stand in the answer's first line."""

    prompt: Prompt
    references: list[str]


def trials(task: str, context_tokens: int, count: int, builder: PromptBuilder) -> list[Trial]:
    """`count` prompts of `context_tokens` tokens."""
    make = {"pass key": pass_keys, "stories": stories}[task]
    built = []
    for sample in make(context_tokens, count, builder):
        prompt = builder.build(sample.parts, context_tokens, "middle")
        assert prompt is not None
        assert prompt.dropped_tokens == 0
        built.append(Trial(prompt, sample.references))
    return built


def stories(context_tokens: int, count: int, builder: PromptBuilder) -> Iterator[Sample]:
    """NarrativeQA's prompt over synthetic stories; the reference is the place or the person."""
    settings = narrativeqa_eval.NarrativeQASettings()

    def samples(document_tokens: int) -> list[Sample]:
        records = synthetic.stories(0, count, document_tokens, builder.count_tokens)
        return [narrativeqa_eval.sample(r, number, settings) for number, r in enumerate(records)]

    longest = max(builder.fixed_tokens(sample.parts) for sample in samples(0))
    for sample in samples(context_tokens - longest):
        yield Sample(sample.sample_id, sample.parts, [sample.references[0].split()[-1]])


def pass_keys(context_tokens: int, count: int, builder: PromptBuilder) -> Iterator[Sample]:
    """A sentence with five digits, anywhere in a story."""
    for number in range(count):
        rng = random.Random(f"pass key/{number}")
        key = str(rng.randrange(10_000, 100_000))
        said = f"The pass key is {key}. Remember it."
        before = "There is important information hidden in the following text. Find it.\n\n"
        after = "\n\nWhat is the pass key? The pass key is"
        # Tokens at the seams may come apart: a few less of the story than fit.
        fixed = builder.fixed_tokens(Parts(before, "", f"{said}\n\n{after}")) + 4
        (record,) = synthetic.stories(number, 1, context_tokens - fixed, builder.count_tokens)
        sentences = re.split(r"(?<=\.) ", record["document"]["text"])
        sentences.insert(round((number + 0.5) / count * len(sentences)), said)
        yield Sample(str(number), Parts(before, " ".join(sentences), after), [key])


class ScoredLayer(PrunedLayer):
    """Keeps everything, and what each method makes of it."""

    needs_rotation = True
    scores: dict[str, torch.Tensor]

    def prune_if_due(
        self,
        queries: torch.Tensor | None = None,
        scaling: float = 1.0,
        rotary: Rotary | None = None,
    ) -> None:
        """Score the tokens of the prefill, which is one row without padding."""
        places = torch.arange(self.keys.shape[2])[None]
        layer = StoredLayer(
            self.keys, self.values, places[None], queries, places, scaling, self.layer_idx, rotary
        )
        self.scores = {name: method.score(layer) for name, method in all_methods().items()}
        super().prune_if_due(queries, scaling, rotary)


class Prefill:
    """The whole cache of some tokens, from which pruned ones are made."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int]):
        self.length = len(tokens)
        self.layers = [ScoredLayer(layer_idx=n) for n in range(model.config.num_hidden_layers)]
        cache = PrunedCache(len(self.layers))
        cache.layers = [*self.layers]
        with use_attention(model, "sdpa", cache):
            logits = model(
                input_ids=torch.tensor([tokens]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        self.next_token = int(logits[0, -1].argmax())

    def pruned(self, names: Sequence[str], keep_ratio: float) -> PrunedCache:
        """A batch of caches, one row for each of the methods, all pruned to the same share."""
        batch = PrunedCache(len(self.layers))
        count = kept_count(self.length, keep_ratio)
        for whole, layer in zip(self.layers, batch.layers, strict=True):
            if whole.layer_idx in SKIP_LAYERS or keep_ratio == 1:
                rows = [(whole.keys, whole.values)] * len(names)
            else:
                rows = []
                for name in names:
                    index = select(whole.scores[name], None, [count]).index[..., None]
                    index = index.expand(-1, -1, -1, whole.keys.shape[3])
                    rows.append((whole.keys.gather(2, index), whole.values.gather(2, index)))
            layer.update(*(torch.cat(tensors) for tensors in zip(*rows, strict=True)))
            layer.prune_if_due()
            layer.seen_tokens = self.length
        return batch


def answers(
    model: PreTrainedModel, cache: PrunedCache, seen: int, tokens: Sequence[int], count: int
) -> list[list[int]]:
    """Greedy tokens of each row of `cache` after `tokens`, which follow `seen` others."""
    rows = cache.layers[0].keys.shape[0]
    step = torch.tensor([list(tokens)] * rows)
    new_tokens: list[list[int]] = [[] for _ in range(rows)]
    with use_attention(model, "sdpa", cache):
        for _ in range(count):
            position_ids = torch.arange(seen, seen + step.shape[1])[None].expand(rows, -1)
            logits = model(
                input_ids=step,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            seen += step.shape[1]
            step = logits[:, -1].argmax(dim=-1, keepdim=True)
            for row, token in zip(new_tokens, step[:, 0].tolist(), strict=True):
                row.append(token)
    return new_tokens


@torch.inference_mode()
def answers_of_every_cell(
    model: PreTrainedModel, prompt: Prompt, scope: str, count: int
) -> dict[Cell, list[int]]:
    """`count` new tokens for each method and ratio, and for the full cache (ratio 1)."""
    question = prompt.question_tokens if scope == "context" else 0
    context = prompt.input_ids[: len(prompt.input_ids) - question]
    prefill = Prefill(model, context)
    # The whole prompt's first new token comes from its own prefill.
    tokens = prompt.input_ids[len(context) :] or [prefill.next_token]
    known = [] if question else [prefill.next_token]
    found: dict[Cell, list[int]] = {}
    for ratio in (1.0, *RATIOS):
        names = ["full"] if ratio == 1 else list(all_methods())
        cache = prefill.pruned(names, ratio)
        rows = answers(model, cache, prefill.length, tokens, count - len(known))
        found |= {(name, ratio): known + row for name, row in zip(names, rows, strict=True)}
    return found


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line for line in text.split("\n") if line.strip()), "")


def is_right(text: str, references: Sequence[str]) -> bool:
    """Whether one of the references stands in the first line, as words of its own."""
    line = first_line(text).casefold()
    return any(re.search(rf"\b{re.escape(known.casefold())}\b", line) for known in references)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every cell of every task and context length; written after each."""
    folder = builtin.folder(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    builder = PromptBuilder(tokenizer, chat_template=False)
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/pruning_quality.py", *sys.argv[1:]]),
        "model": arguments.model,
        "dtype": "bfloat16",
        "skip_layers": SKIP_LAYERS,
        "versions": environment.versions(),
        "device": environment.device(),
        "git_commit": environment.git_commit(),
        "cells": [],
    }
    for task, new_tokens in NEW_TOKENS.items():
        for context_tokens in arguments.contexts:
            outcomes: dict[tuple[str, Cell], list[bool]] = {}
            prompts = trials(task, context_tokens, arguments.trials, builder)
            for trial in track(prompts, f"{task}, {context_tokens:,}", console=stderr):
                for scope in SCOPES:
                    found = answers_of_every_cell(model, trial.prompt, scope, new_tokens)
                    for cell, row in found.items():
                        text = tokenizer.decode(row, clean_up_tokenization_spaces=False)
                        right = is_right(str(text), trial.references)
                        outcomes.setdefault((scope, cell), []).append(right)
            for (scope, (method, ratio)), mine in outcomes.items():
                report["cells"].append(
                    {
                        "task": task,
                        "context_tokens": context_tokens,
                        "scope": scope,
                        "method": method,
                        "keep_ratio": ratio,
                        "n": len(mine),
                        "right": sum(mine),
                        "ci95": wilson(sum(mine), len(mine)),
                        "outcomes": "".join("1" if right else "0" for right in mine),
                    }
                )
            write_whole(arguments.out, json.dumps(report, indent=1) + "\n")
    return report


def wilson(right: int, count: int) -> list[float]:
    """95% interval of a share."""
    interval = binomtest(right, count).proportion_ci(method="wilson")
    return [round(float(interval.low), 4), round(float(interval.high), 4)]


def table_of(report: dict[str, Any], scope: str) -> Table:
    """Right answers in percent with their interval: a line a task, length and method."""
    table = Table(title=f"KV_SCOPE={scope}, % right [95%]", title_justify="left")
    for heading in ("task", "context", "method", "1.0", *map(str, RATIOS)):
        table.add_column(heading, justify="left" if heading in ("task", "method") else "right")
    cells = [cell for cell in report["cells"] if cell["scope"] == scope]
    for task, context_tokens in dict.fromkeys((c["task"], c["context_tokens"]) for c in cells):
        here = [c for c in cells if (c["task"], c["context_tokens"]) == (task, context_tokens)]
        (full,) = (cell for cell in here if cell["method"] == "full")
        for method in dict.fromkeys(c["method"] for c in here if c is not full):
            by_ratio = {c["keep_ratio"]: c for c in here if c["method"] == method}
            shown = [full, *(by_ratio[ratio] for ratio in RATIOS)]
            table.add_row(task, f"{context_tokens:,}", method, *map(_share, shown))
        table.add_section()
    return table


def _share(cell: dict[str, Any]) -> str:
    low, high = (round(100 * end) for end in cell["ci95"])
    return rf"{round(100 * cell['right'] / cell['n'])} \[{low}, {high}]"


def main() -> None:
    """Run the study, or draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--out", type=Path, default=Path("logs/pruning_quality.json"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    if arguments.figure:
        from benchmarks.pruning_quality_figure import draw

        draw(json.loads(arguments.out.read_text(encoding="utf-8")), arguments.figure)
        return
    report = run(arguments)
    for scope in SCOPES:
        stdout.print(table_of(report, scope))


if __name__ == "__main__":
    main()
