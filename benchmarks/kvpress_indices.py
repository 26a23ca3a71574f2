"""Do our methods keep the tokens that NVIDIA's kvpress keeps?

    python -m venv kvpress-env && kvpress-env/bin/pip install torch kvpress==0.5.5
    python benchmarks/kvpress_indices.py --oracle kvpress-env/bin/python --text book.txt

kvpress needs an older transformers, so its half of the script runs in an environment of its own.
Both halves prefill the same tokens through the built-in model in float32 and choose, in every layer
and head, which tokens stay. kvpress keeps int(n * keep_ratio) of n tokens and we keep
ceil(keep_ratio * n); so that choices and not counts are compared, both keep our number here. Prints
and writes how many choices differ, for each method and ratio, and how far apart the scores of the
tokens in question are.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

KEEP_RATIOS = (0.9, 0.7, 0.5, 0.25)
PRESSES = {
    "l2": "KnormPress",
    "keydiff": "KeyDiffPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "window": "StreamingLLMPress",
    "expected_attention": "ExpectedAttentionPress",
}
Choices = dict[str, dict[float, list[torch.Tensor]]]


def load(folder: str) -> Any:
    """The model, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@torch.no_grad()
def oracle(folder: str, tokens: list[int], result: Path) -> None:
    """kvpress's scores of every layer, by method and ratio; runs in its environment."""
    import kvpress
    from transformers import DynamicCache

    model = load(folder)
    scores: Choices = {name: {ratio: [] for ratio in KEEP_RATIOS} for name in PRESSES}

    def score(module: Any, _: Any, kwargs: Any, __: Any) -> None:
        cache = kwargs["past_key_values"].layers[module.layer_idx]
        for name, press in PRESSES.items():
            for ratio in KEEP_RATIOS:
                # Its own count of this ratio is rounded down; a hair less pruned gives ours.
                kept = math.ceil(ratio * len(tokens))
                made = getattr(kvpress, press)(compression_ratio=1 - (kept + 0.5) / len(tokens))
                inputs = (module, kwargs["hidden_states"], cache.keys, cache.values, None, kwargs)
                scores[name][ratio].append(made.score(*inputs)[0].float())

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb  # as kvpress's own hook does
        layer.self_attn.register_forward_hook(score, with_kwargs=True)
    model(torch.tensor([tokens]), past_key_values=DynamicCache(config=model.config))
    torch.save({"scores": scores, "version": metadata.version("kvpress")}, result)


def our_choices(folder: str, tokens: list[int]) -> Choices:
    """The indices that our methods keep, (H, kept) for each layer, by method and ratio."""
    from kv_compression.generation import generate
    from kv_compression.layer import PrunedLayer
    from kv_compression.methods import StoredLayer, method_class
    from kv_compression.pruning import kept_count
    from kv_compression.selection import select

    model = load(folder)
    choices: Choices = {name: {ratio: [] for ratio in KEEP_RATIOS} for name in PRESSES}

    def prune_if_due(self: Any, queries: torch.Tensor, scaling: float, rotary: Any) -> None:
        places = torch.arange(len(tokens))[None]
        layer = StoredLayer(
            self.keys, self.values, places[None], queries, places, scaling, self.layer_idx, rotary
        )
        for name, by_ratio in choices.items():
            scores = method_class(name)().score(layer)
            for ratio in KEEP_RATIOS:
                count = kept_count(len(tokens), ratio)
                by_ratio[ratio].append(select(scores, None, [count]).index[0])
        keep_all(self, queries, scaling, rotary)

    keep_all = PrunedLayer.prune_if_due
    PrunedLayer.prune_if_due = prune_if_due  # type: ignore[method-assign, assignment]
    generate(model, torch.tensor([tokens]), backend="sdpa", max_new_tokens=1)
    return choices


def compare(ours: Choices, theirs: Choices) -> list[dict[str, Any]]:
    """For each method and ratio: choices that differ, and by how much their scores do."""
    rows = []
    for name, by_ratio in ours.items():
        for ratio, layers in by_ratio.items():
            chosen = differing = 0
            widest = 0.0
            for mine, scores in zip(layers, theirs[name][ratio], strict=True):
                count = mine.shape[1]
                expected = scores.topk(count, dim=-1).indices
                for head in range(mine.shape[0]):
                    only_mine = set(mine[head].tolist()) - set(expected[head].tolist())
                    chosen += count
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
        oracle(job["folder"], job["tokens"], Path(job["result"]))
        return

    from longctx import builtin, environment

    folder = str(builtin.folder("smollm2-135m"))
    text = arguments.text.read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(folder)(text).input_ids[: arguments.tokens]
    with tempfile.TemporaryDirectory() as temporary:
        job_file, result = Path(temporary, "job.json"), Path(temporary, "scores.pt")
        job_file.write_text(json.dumps({"folder": folder, "tokens": tokens, "result": str(result)}))
        subprocess.run([arguments.oracle, __file__, "--job", str(job_file)], check=True)
        theirs = torch.load(result, weights_only=True)
    rows = compare(our_choices(folder, tokens), theirs["scores"])
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
