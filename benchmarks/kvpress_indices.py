"""Do our methods keep the tokens that NVIDIA's kvpress keeps?

    python -m venv kvpress-env
    kvpress-env/bin/pip install torch kvpress==0.5.5 "transformers<5.3"
    python benchmarks/kvpress_indices.py --oracle kvpress-env/bin/python --text book.txt

kvpress needs an older transformers, so its half of the script runs in an environment of its own.
Both halves prefill the same tokens through the built-in model in float32 and choose, in every layer
and head, which tokens stay. kvpress keeps int(n * keep_ratio) of n tokens and we keep
ceil(keep_ratio * n); so that choices and not counts are compared, both keep our number here. Of
whole chunks, of which kvpress cuts none, and of a pyramid's layers, which it rounds one by one,
both keep its number. Where a layer's heads compete they are taken together. leverage maps keys by
the same random numbers in both. Prints and writes how many choices differ, for each method and
ratio, and how far apart kvpress's scores of the tokens in question are: 0 where all are ties.
"""

import argparse
import json
import math
import subprocess
import tempfile
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

KEEP_RATIOS = (0.9, 0.7, 0.5, 0.25)
PRESSES = {
    "l2": "KnormPress",
    "keydiff": "KeyDiffPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "window": "StreamingLLMPress",
    "expected_attention": "ExpectedAttentionPress",
    "lagkv": "LagKVPress",
    "leverage": "LeverageScorePress",
    "h2o": "ObservedAttentionPress",
    "chunkkv": "ChunkKVPress",
    "criticalkv": "CriticalKVPress",
    "snapkv pyramid": "PyramidKVPress",
    "snapkv adakv": "AdaKVPress",
    "l2 adakv": "AdaKVPress",
    "keydiff adakv": "AdaKVPress",
    "expected_attention adakv": "AdaKVPress",
    "criticalkv adakv": "CriticalAdaKVPress",
}
Choices = dict[str, dict[float, list[torch.Tensor]]]


def load(folder: str, attention: str) -> Any:
    """The model, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


@torch.no_grad()
def oracle(folder: str, tokens: list[int], maps: list[torch.Tensor], result: Path) -> None:
    """kvpress's scores and choices of every layer, by method and ratio; runs in its environment.

    maps: of each layer what leverage draws, (H, D, sketch).
    """
    import kvpress
    from transformers import DynamicCache

    model = load(folder, "eager")  # the others hand out no attention
    scores: Choices = {name: {ratio: [] for ratio in KEEP_RATIOS} for name in PRESSES}
    kept: Choices = {name: {ratio: [] for ratio in KEEP_RATIOS} for name in PRESSES}

    def score(module: Any, _: Any, kwargs: Any, output: Any) -> None:
        cache = kwargs["past_key_values"].layers[module.layer_idx]
        for name in PRESSES:
            for ratio in KEEP_RATIOS:
                # Its own count of this ratio is rounded down; a hair less pruned gives ours.
                count = math.ceil(ratio * len(tokens))
                press = made(name, 1 - (count + 0.5) / len(tokens))
                attended = output[1] if name == "h2o" else None
                scorer = press if name == "criticalkv" else getattr(press, "press", press)
                inputs = (module, kwargs["hidden_states"], cache.keys, cache.values, attended)
                with drawn(maps[module.layer_idx]):
                    found = scorer.score(*inputs, kwargs)[0].float()
                if name.endswith("adakv"):
                    kept[name][ratio].append(of_heads_that_compete(press, module, inputs, kwargs))
                    found = found.flatten()[None]
                elif name == "snapkv pyramid":
                    count = press.get_layer_budget(module, len(tokens))
                    kept[name][ratio].append(found.topk(count, dim=-1).indices)
                elif name == "chunkkv":
                    # It hands out no indices; places in place of values tell which stay.
                    places = torch.arange(len(tokens), dtype=torch.float32)
                    places = places[:, None].expand_as(cache.values)
                    _, places = press.compress(*inputs[:3], places, None, kwargs)
                    kept[name][ratio].append(places[0, :, :, 0].long())
                else:
                    kept[name][ratio].append(found.topk(count, dim=-1).indices)
                scores[name][ratio].append(found)

    def made(name: str, ratio: float) -> Any:
        if name == "chunkkv":
            return kvpress.ChunkKVPress(kvpress.SnapKVPress(compression_ratio=ratio))
        if name.startswith("criticalkv"):
            return getattr(kvpress, PRESSES[name])(kvpress.SnapKVPress(compression_ratio=ratio))
        if name.endswith(" adakv"):
            scorer = PRESSES[name.removesuffix(" adakv")]
            return kvpress.AdaKVPress(getattr(kvpress, scorer)(compression_ratio=ratio))
        return getattr(kvpress, PRESSES[name])(compression_ratio=ratio)

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb  # as kvpress's own hook does
        layer.self_attn.register_forward_hook(score, with_kwargs=True)
    model(torch.tensor([tokens]), past_key_values=DynamicCache(config=model.config))
    version = metadata.version("kvpress")
    torch.save({"scores": scores, "kept": kept, "version": version}, result)


def of_heads_that_compete(press: Any, module: Any, inputs: Any, kwargs: Any) -> torch.Tensor:
    """(1, kept) int64, head * S + token: what an AdaKVPress leaves of a layer."""
    _, hidden, keys, values, _ = inputs
    module.config._attn_implementation = "sdpa"  # which it asks for, and does not call
    press.compress(module, hidden, keys, values, None, kwargs)
    module.config._attn_implementation = "eager"
    _, heads, tokens = module.masked_key_indices
    module.masked_key_indices = None  # else the next forward masks them
    left = torch.ones(keys.shape[1:3], dtype=torch.bool)
    left[heads, tokens] = False
    return left.flatten().nonzero().T


@contextmanager
def drawn(numbers: torch.Tensor) -> Iterator[None]:
    """In the block torch.randn gives these, (H, D, sketch) of variance 1 / sketch, scaled to 1."""
    given = numbers[None] * math.sqrt(numbers.shape[-1])
    with unittest.mock.patch("torch.randn", return_value=given):
        yield


def leverage_maps(folder: str) -> list[torch.Tensor]:
    """What our leverage draws for each layer."""
    from kv_compression.methods import leverage

    config = AutoConfig.from_pretrained(folder)
    shape = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    return [leverage.Method().maps(layer, *shape) for layer in range(config.num_hidden_layers)]


def our_choices(folder: str, tokens: list[int], theirs: Choices) -> Choices:
    """The indices that our methods keep, (H, kept) for each layer, by method and ratio.

    As many as `theirs`.
    """
    from kv_compression.budgets.adakv import Budget as AdaKV
    from kv_compression.budgets.uniform import Budget as Uniform
    from kv_compression.generation import generate
    from kv_compression.layer import PrunedLayer
    from kv_compression.methods import StoredLayer, method_class
    from kv_compression.rotary import rotations
    from kv_compression.selection import select, select_pooled

    model = load(folder, "sdpa")
    choices: Choices = {name: {ratio: [] for ratio in KEEP_RATIOS} for name in PRESSES}

    def prune_if_due(self: Any, attended: Any) -> None:
        places, rotary = torch.arange(len(tokens))[None], rotaries[self.layer_idx]
        layer = StoredLayer(
            *(self.keys, self.values, places[None], attended.queries, places, attended.scaling),
            *(self.layer_idx, rotary, model.model.layers[self.layer_idx].self_attn.o_proj.weight),
        )
        for name, by_ratio in choices.items():
            method, _, budget = name.partition(" ")
            scores = None
            for ratio in KEEP_RATIOS:
                count = theirs[name][ratio][self.layer_idx].shape[1]
                heads = layer.keys.shape[1] if budget == "adakv" else 1
                shared = AdaKV() if budget == "adakv" else Uniform()
                known = replace(layer, counts=(count // heads,), budget=shared)
                if scores is None or method == "criticalkv":  # whose scores depend on the count
                    scores = method_class(method)().score(known)
                if budget == "adakv":
                    least = [AdaKV().guaranteed(count // heads)]
                    by_ratio[ratio].append(select_pooled(scores, None, [count], least).index)
                else:
                    by_ratio[ratio].append(select(scores, None, [count]).index[0])
        keep_all(self, attended)

    rotaries = list(rotations(model).values())
    keep_all = PrunedLayer.prune_if_due
    PrunedLayer.prune_if_due = prune_if_due  # type: ignore[method-assign, assignment]
    generate(model, torch.tensor([tokens]), backend="sdpa", max_new_tokens=1)
    return choices


def compare(ours: Choices, theirs: Choices, their_scores: Choices) -> list[dict[str, Any]]:
    """For each method and ratio: choices that differ, and by how much their scores do."""
    rows = []
    for name, by_ratio in ours.items():
        for ratio, layers in by_ratio.items():
            chosen = differing = 0
            widest = 0.0
            answers = zip(layers, theirs[name][ratio], their_scores[name][ratio], strict=True)
            for mine, expected, scores in answers:
                for head in range(mine.shape[0]):
                    only_mine = set(mine[head].tolist()) - set(expected[head].tolist())
                    chosen += mine.shape[1]
                    differing += len(only_mine)
                    if only_mine:
                        last = scores[head][expected[head]].min()
                        gap = (last - scores[head][list(only_mine)]).abs().max()
                        widest = max(widest, (gap / scores[head].std()).item())
            rows.append(
                {
                    "method": name,
                    "keep_ratio": ratio,
                    "chosen": chosen,
                    "differing": differing,
                    "widest_gap_in_standard_deviations": float(f"{widest:.3g}"),
                }
            )
    return rows


def main() -> None:
    """Run both halves and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--oracle", help="Python of the environment with kvpress")
    parser.add_argument("--text", type=Path, help="a text of more than --tokens tokens")
    parser.add_argument("--tokens", type=int, default=1009)
    parser.add_argument("--out", type=Path, default=Path("logs/kvpress_indices.json"))
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job.read_text())
        oracle(job["folder"], job["tokens"], torch.load(job["maps"]), Path(job["result"]))
        return

    from longctx import builtin, environment

    folder = str(builtin.folder())
    text = arguments.text.read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(folder)(text).input_ids[: arguments.tokens]
    with tempfile.TemporaryDirectory() as temporary:
        job_file, result = Path(temporary, "job.json"), Path(temporary, "scores.pt")
        maps = Path(temporary, "maps.pt")
        torch.save(leverage_maps(folder), maps)
        job = {"folder": folder, "tokens": tokens, "maps": str(maps), "result": str(result)}
        job_file.write_text(json.dumps(job))
        subprocess.run([arguments.oracle, __file__, "--job", str(job_file)], check=True)
        theirs = torch.load(result, weights_only=True)
    ours = our_choices(folder, tokens, theirs["kept"])
    rows = compare(ours, theirs["kept"], theirs["scores"])
    for row in rows:
        print(*row.values(), sep="\t")
    report = {
        "command": "python benchmarks/kvpress_indices.py --oracle kvpress-env/bin/python "
        f"--text {arguments.text.name} --tokens {len(tokens)}",
        "tokens": len(tokens),
        "kvpress": theirs["version"],
        "versions": environment.versions(),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
