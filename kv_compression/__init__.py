"""KV-cache pruning for Hugging Face decoder-only models, with exact positions, padding and ties.

This package stands alone: it needs torch and transformers, and knows nothing of the harness.

- `cache`: `PrunedCache` and `l2_compress`
- `kv_l2_dynamic`: `generate_with_l2_compress`
- `generation`: `generate`, the prefill, compress, decode loop that every mode runs through
- `attention`: the attention backends, one file each
- `methods`: the pruning methods, one file each

Letters used for shapes: B batch, Hq query heads, H key/value heads, Q query tokens, S stored
tokens (the keys that a layer holds), D head_dim.
"""
