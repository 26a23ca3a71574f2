"""Filters for KV_MODE=qfilters, from the queries that a model makes of a text.

  export MODEL_ID=smollm2-135m
  python -m longctx.qfilters --text book.txt --out filters.safetensors
  KV_MODE=qfilters QFILTERS_FILE=filters.safetensors python narrativeqa_eval.py

The model is loaded as the scripts load it, by the same variables. The text is cut into pieces of
--tokens tokens, of which the first --pieces are read. The text should not be among those that are
evaluated.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from kv_compression.generation import generate
from kv_compression.methods import StoredLayer
from kv_compression.methods.qfilters import filters_of, moments
from kv_compression.pruning import Pruning
from longctx import cli, config, environment, models, preflight
from longctx.errors import SettingError
from longctx.settings import Settings


@dataclass(frozen=True)
class _Moments:
    """A pruning method that keeps everything but one token, and adds up what it sees."""

    squares: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: dict[int, int] = field(default_factory=dict)

    all_prompt_queries = True
    query_window = 0

    def score(self, layer: StoredLayer) -> torch.Tensor:
        """(B, H, S) float32 zeros."""
        squares, sums = (found.cpu() for found in moments(*layer.last_queries()))
        index = layer.layer_idx
        self.squares[index] = self.squares.get(index, 0) + squares
        self.sums[index] = self.sums.get(index, 0) + sums
        self.heads[index] = layer.keys.shape[1]
        return layer.keys.new_zeros(layer.keys.shape[:3], dtype=torch.float32)


def filters(model: PreTrainedModel, pieces: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """(H, D) float32 of each layer that attends to all of a text, from ids (pieces, tokens)."""
    seen = _Moments()
    pruning = Pruning(seen, keep_tokens=pieces.shape[1] - 1, prune_after=0)
    for piece in pieces:
        generate(model, piece[None], backend=backend, max_new_tokens=1, pruning=pruning)
    return {
        str(layer): filters_of(squares, seen.sums[layer], seen.heads[layer])[0].contiguous()
        for layer, squares in seen.squares.items()
    }


def main() -> None:
    """Write the filters of MODEL_ID. Exit code 2 for what cannot be read or is too short."""
    parser = cli.parser(__doc__, prog="python -m longctx.qfilters")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--tokens", type=int, default=2048, help="of a piece")
    parser.add_argument("--pieces", type=int, default=8, help="pieces that are read at most")
    with cli.exit_codes():
        arguments = parser.parse_args()
        settings, environ = config.read(Settings)
        settings = preflight.choose_backend(settings, environ)
        try:
            text = arguments.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError("--text", arguments.text, f"cannot be read: {error}") from None
        source = models.find(settings)
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        count = min(arguments.pieces, len(ids) // arguments.tokens)
        if count < 1:
            problem = f"has {len(ids)} tokens, fewer than a piece of {arguments.tokens}"
            raise SettingError("--text", arguments.text, problem)
        pieces = torch.tensor(ids[: count * arguments.tokens]).view(count, arguments.tokens)
        quantization = environ.quantization(settings.quant_mode)
        quantization.check()
        model, _ = models.load(settings, source, quantization)
        about = {
            "model": settings.model_id,
            "text": arguments.text.name,
            "tokens": str(pieces.numel()),
            "versions": json.dumps(environment.versions()),
        }
        save_file(filters(model, pieces, settings.attn_impl), arguments.out, metadata=about)
        print(f"{arguments.out}: filters from {pieces.numel():,} tokens of {arguments.text.name}")


if __name__ == "__main__":
    main()
