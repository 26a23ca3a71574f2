"""KV-cache pruning for Hugging Face decoder-only models, with exact positions, padding and ties.

This package stands alone: it needs torch and transformers, and knows nothing of the harness.

- `generate`: any pruning method in one call
- `cache`: `PrunedCache` and `l2_compress`
- `kv_l2_dynamic`: `generate_with_l2_compress`
- `generation`: the prefill, compress, decode loop that every mode runs through
- `attention`: the attention backends, one file each
- `methods`: the pruning methods, one file each; `budgets`: how they share out what is kept

Letters used for shapes: B batch, Hq query heads, H key/value heads, Q query tokens, S stored
tokens (the keys that a layer holds), D head_dim.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kv_compression.api import generate

__all__ = ["generate"]


def __getattr__(name: str) -> Any:
    # So that whoever asks for names and parameters does not wait for torch.
    if name == "generate":
        from kv_compression.api import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
